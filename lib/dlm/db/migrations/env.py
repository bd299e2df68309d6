"""Alembic's entry: online only, one transaction per migration, bounded waits."""

import sqlalchemy as sa
from alembic import context

from dlm.db.models import metadata

engine = sa.create_engine(context.config.attributes["dsn"])
try:
    with engine.connect() as connection:
        # A migration that waits for a lock stops everybody behind it; better that it fails and is run again.
        connection.exec_driver_sql("SET lock_timeout = '10s'")
        connection.exec_driver_sql("SET statement_timeout = '30min'")
        connection.commit()
        context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=True)
        with context.begin_transaction():
            context.run_migrations()
finally:
    engine.dispose()
