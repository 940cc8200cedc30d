"""What is measured on the records of an evaluation."""
