// BullMQ's producer: the same three commands as producer.py, line by line.
const fs = require("node:fs");
const readline = require("node:readline");
const { Queue } = require("bullmq");
const { backend, connection } = require("./bullmq_store.cjs");

const LINE = 42;
const BATCH = 1000;
const marks = fs.openSync(process.env.PEERS_MARKS, "r");
const count = () => Math.floor(fs.fstatSync(marks).size / LINE);
const seconds = () => Number(process.hrtime.bigint()) / 1e9;
const text = (number) => number.toString().padStart(20, "0") + "x".repeat(68);
const sleep = (s) => new Promise((wake) => setTimeout(wake, Math.max(0, s * 1000)));

const queue = new Queue("peers", { connection }, backend);
const one = (number) => queue.add("noop", { text: text(number) });

const commands = {
  async fill({ count }) {
    let number = 0;
    let begun = seconds();
    for (; number < Math.floor(count / 4) && seconds() - begun < 1; number++) await one(number);
    const answer = { one: number / (seconds() - begun) };
    const rest = count - number;
    begun = seconds();
    while (number < count) {
      const jobs = [];
      for (; jobs.length < BATCH && number < count; number++) jobs.push({ name: "noop", data: { text: text(number) } });
      await queue.addBulk(jobs);
    }
    return { ...answer, many: rest / (seconds() - begun) };
  },

  async steady({ rate, seconds: length }) {
    const begun = seconds();
    const sent = Math.floor(rate * length);
    for (let number = 0; number < sent; number++) {
      await sleep(begun + number / rate - seconds());
      await one(process.hrtime.bigint());
    }
    return { sent };
  },

  async pickup({ count: wanted, seconds: length }) {
    const before = count();
    const begun = seconds();
    let sent = 0;
    while (sent < wanted && seconds() - begun < length) {
      await one(process.hrtime.bigint());
      sent++;
      while (count() < before + sent) {
        if (seconds() - begun > length + 10) throw new Error("a job was not picked up within 10 s");
        await sleep(0.001);
      }
      await sleep(0.002 + Math.random() * 0.016);
    }
    return { sent };
  },
};

(async () => {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const asked = JSON.parse(line);
    process.stdout.write(JSON.stringify(await commands[asked.do](asked)) + "\n");
  }
  await queue.close();
})();
