"""``python -m cachesrv`` is the console script."""

from cachesrv.cli import main

if __name__ == "__main__":
    main()
