"""cachesrv: a build and dependency cache server that speaks the protocols CI tools already speak."""

__version__ = "0.1.0"
