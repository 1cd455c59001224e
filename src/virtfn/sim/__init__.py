"""What things cost: prices for the meter's events, from published measurements."""
