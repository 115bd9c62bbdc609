"""What ran for how long, and what that costs: computed from the journal, and computable again."""
