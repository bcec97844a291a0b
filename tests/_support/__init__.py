"""What several test folders share: servers, workers, ledgers, waiting."""
