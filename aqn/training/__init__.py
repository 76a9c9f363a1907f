"""Train one model several ways under the same fault, and compare what comes out."""
