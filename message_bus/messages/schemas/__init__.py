"""JSON Schema of messages, and what may change in it without breaking old rows or old code. Pure; admin calls it.

`json_schema` makes the document of a registry, `compatibility` compares two of them.
"""
