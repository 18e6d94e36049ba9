// BullMQ's worker: one process per core, completed jobs removed at once.
const cluster = require("node:cluster");
const fs = require("node:fs");
const { Worker } = require("bullmq");
const { backend, concurrency, connection } = require("./bullmq_store.cjs");

if (cluster.isPrimary) {
  for (let each = 0; each < 2; each++) cluster.fork();
} else {
  const marks = fs.openSync(process.env.PEERS_MARKS, fs.constants.O_WRONLY | fs.constants.O_APPEND);
  const noop = async (job) => {
    fs.writeSync(marks, `${job.data.text.slice(0, 20)} ${process.hrtime.bigint().toString().padStart(20, "0")}\n`);
  };
  new Worker("peers", noop, { connection, concurrency, removeOnComplete: { count: 0 } }, backend);
}
