"""Train a student in several ways and compare what came of them."""
