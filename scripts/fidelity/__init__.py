"""What the checks of predictions share."""
