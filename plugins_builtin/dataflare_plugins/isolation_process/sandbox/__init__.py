"""What confines a worker: kernel calls through ctypes and nothing else, done before any code of a plugin is imported."""
