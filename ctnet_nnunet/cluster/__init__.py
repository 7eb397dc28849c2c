"""Work for more than one machine: chains of commands with dependencies, here one after another or as SLURM jobs."""
