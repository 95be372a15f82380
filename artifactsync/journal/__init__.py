"""What happened to a run: numbered records, claim, commit, catalogue. Knows no torch."""
