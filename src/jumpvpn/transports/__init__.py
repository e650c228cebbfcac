"""What is known about each candidate: measurement, validation, liveness. Pure."""
