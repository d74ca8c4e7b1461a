"""MySQL and MariaDB: tables and their binary log as a source, tables as a destination."""
