"""What happened, told to those outside: the journals, one stream of them, webhooks."""
