"""The code that travels with a job."""
