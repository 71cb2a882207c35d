"""The command `message-bus`: thin commands around functions that programs can call as well.

`main.py` holds the group and names its commands, each in a module that is imported when it is run; `options.py` holds
what commands share: where the database is, and how an error is reported. Nothing else imports this package.
"""
