"""Projects and their API keys: who is calling, and which rows are theirs."""
