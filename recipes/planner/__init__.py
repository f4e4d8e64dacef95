"""What a job will need: parameters, memory of a rank, disk, time, and the smallest layout that fits."""
