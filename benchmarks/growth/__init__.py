"""What the bus costs as work grows: a dimension a file."""
