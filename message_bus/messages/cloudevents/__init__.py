"""CloudEvents 1.0: envelopes for those who do not know this package, and from them.

    Envelope ──writer──► attributes + the message's JSON ──► one JSON object (structured), an array of them (batch)
       ▲                                                └──► headers and body (binary: HTTP, Kafka, AMQP, NATS)
       └─────reader───── attributes, checked + JSON ◄────────┘

What is written is ours and becomes an event as it is; what is read is not trusted and becomes an envelope only if every
attribute keeps to the rules and the type is one that is accepted. Pure, like the rest of `messages`.
"""
