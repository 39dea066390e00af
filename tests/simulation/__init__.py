"""A deterministic simulation of processes that share a ledger: every interleaving, every death, one seed."""
