"""What every outbox repository must do, as tests to inherit: `OutboxContract` and `AsyncOutboxContract`. Needs pytest.

    class TestMyOutbox(OutboxContract):
        capabilities = Capabilities(delays=False, order_per_key=False, dead_letters=False)

        @pytest.fixture
        def unit_of_work(self, engine):
            @contextmanager
            def open_one():
                with Session(engine) as session:
                    yield MyOutBoxRepo(session)

            return open_one

The tests themselves are in `outbox_registering_async.py` and `outbox_processing_async.py`, and their twins.
"""

from __future__ import annotations

from message_bus.testing.outbox_processing import ProcessingContract
from message_bus.testing.outbox_processing_async import AsyncProcessingContract


class OutboxContract(ProcessingContract):
    """The tests of an outbox repository; each docstring says what is promised.

    To be given: a fixture `unit_of_work`. It returns a function that opens a unit of work: a context manager whose value
    is a repository, and whose end saves nothing. All of one test stand on one outbox, which is empty at first. And
    `capabilities`, for what this outbox does not do: such tests are skipped and say what is missing.
    """


class AsyncOutboxContract(AsyncProcessingContract):
    """The same for an AsyncMessageBus: `unit_of_work` returns a function that opens an async context manager.

    The repository's methods may be async or not. The tests are `async def`, so pytest-asyncio is needed: in auto mode,
    or with `@pytest.mark.asyncio` on the class that inherits them.
    """
