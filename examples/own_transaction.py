"""A task whose effect and whose success are one: both are written in one transaction of its own, on PostgreSQL.

export GOTASK_STORAGE=postgres://app:secret@localhost/shop
gotask-worker -A own_transaction:app &
python own_transaction.py
"""

import os

import psycopg

from gotask import Context, GoTask

app = GoTask()
DATABASE = os.environ.get("GOTASK_STORAGE", "postgres://localhost/shop").partition("?")[0]


@app.task(max_retries=5)
def transfer(ctx: Context, source: str, target: str, cents: int) -> None:
    """Moves money once, whatever is killed meanwhile: until the commit nothing has happened, after it all has."""
    with psycopg.connect(DATABASE) as connection:  # commits at its end, and rolls back what raises
        connection.execute("UPDATE accounts SET cents = cents - %s WHERE name = %s", (cents, source))
        connection.execute("UPDATE accounts SET cents = cents + %s WHERE name = %s", (cents, target))
        ctx.complete(connection, {"moved": cents})


def main() -> None:
    with psycopg.connect(DATABASE) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS accounts (name text PRIMARY KEY, cents bigint NOT NULL)")
        connection.execute("INSERT INTO accounts VALUES ('ann', 10000), ('bob', 0) ON CONFLICT DO NOTHING")
        job = transfer.options(connection=connection).enqueue("ann", "bob", 500)  # there once this commits
    print(app.job(job.id).result(timeout=30))


if __name__ == "__main__":
    main()
