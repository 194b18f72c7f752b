"""What every room may use: checks, atomic files, locks, processes, precision, timing."""
