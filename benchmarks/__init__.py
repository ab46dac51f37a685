"""Side by side with peers, one question a module: ``python -m benchmarks NAME [--quick]``.

Every figure is a ratio against a named peer (nginx, dd, a null server that shows the client's own limit) measured in
the same go, the two in turn, median of several rounds. Absolute numbers drift with the machine; ratios are promised.
"""
