"""What runs inside the image: one row, from idle check to result.json."""
