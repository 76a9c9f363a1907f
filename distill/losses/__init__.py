"""What pulls at a student, each a function of what it made, of what its teacher made, and of which tokens count."""
