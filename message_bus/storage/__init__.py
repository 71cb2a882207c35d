"""Storage: tables, statements, and what is read from the databases themselves: watermark, schema, views."""
