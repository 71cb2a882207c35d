"""A small shop: FastAPI, SQLAlchemy's AsyncSession, message_bus."""
