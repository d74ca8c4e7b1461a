"""The workflow engine: parsing, planning and running, in the seven parts the architecture names."""
