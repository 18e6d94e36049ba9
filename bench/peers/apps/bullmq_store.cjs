// What BullMQ runs on: Redis, or PostgreSQL by its own backend. Run by itself, it makes the tables that the latter needs.
const bullmq = require("bullmq");

const { PEERS_POSTGRES, PEERS_REDIS } = process.env;

exports.backend = PEERS_POSTGRES && bullmq.createPostgresBackend;
exports.concurrency = PEERS_POSTGRES ? 32 : 50;
exports.connection = PEERS_POSTGRES
  ? { connectionString: PEERS_POSTGRES, max: 10 }
  : { url: PEERS_REDIS, maxRetriesPerRequest: null };

async function install() {
  const { Client } = require("pg");
  const client = new Client({ connectionString: PEERS_POSTGRES });
  await client.connect();
  await bullmq.runMigrations(client);
  await client.end();
}

if (require.main === module) install();
