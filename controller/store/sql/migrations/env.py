"""What Alembic runs around migrations: it takes the connection that `controller.store.sql.schema` holds, and its transaction."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
