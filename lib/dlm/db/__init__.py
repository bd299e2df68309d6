"""The database: models, migrations, and all the SQL. Functions take a `Tx` and state how many statements they run."""
