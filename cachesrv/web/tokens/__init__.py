"""How a job's token is judged: one file a mode, all behind ``Verifier``; ``claims`` reads what a token says."""
