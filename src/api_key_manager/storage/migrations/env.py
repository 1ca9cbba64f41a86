"""Alembic's entry: migrates over the connection that it is handed."""

from alembic import context

from api_key_manager.connections import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=False,
)
context.run_migrations()
