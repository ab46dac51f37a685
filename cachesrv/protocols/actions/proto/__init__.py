"""The messages of cache service v2, generated from ``cache.proto`` and committed, so that nobody needs a compiler.

To regenerate (``pip install grpcio-tools mypy-protobuf``), in the repository root:

    python -m grpc_tools.protoc -I. --python_out=. --mypy_out=. cachesrv/protocols/actions/proto/cache.proto
"""
