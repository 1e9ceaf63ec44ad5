// node example.js HOST:PORT TLS_FOLDER [KEY_FILE TO AMOUNT]
//
// Shows the last blocks and the unfinished tasks of a node; with a key file it sends AMOUNT to the account TO (hex) as well.
'use strict';

const { ask, connect, readKey, send, watch, watchBlocks } = require('./pofl.js');

async function main([target, folder, keyFile, to, amount]) {
  if (!folder) throw new Error('usage: node example.js HOST:PORT TLS_FOLDER [KEY_FILE TO AMOUNT]');
  const node = connect(target, folder);
  try {
    const tip = await ask(node, 'GetTip', {});
    console.log(`height ${tip.height} supply ${tip.supply}`);
    const first = Math.max(1, Number(tip.height) - 4);
    if (first <= Number(tip.height)) {
      for await (const block of watchBlocks(node, first)) {
        const { height, kind } = block.header;
        console.log(`block ${height} ${kind} ${block.blockHash.toString('hex').slice(0, 8)}`);
        if (Number(height) >= Number(tip.height)) break;
      }
    }
    for await (const { height, tasks } of watch(node, 'WatchTasks', () => ({}))) {
      console.log(`tasks ${tasks.length} at height ${height}`);
      for (const task of tasks) console.log(`task ${task.taskId.toString('hex').slice(0, 8)} ${task.spec.name} ${task.phase}`);
      break;
    }
    if (keyFile) {
      const sent = await send(node, readKey(keyFile), Buffer.from(to, 'hex'), amount);
      console.log(`sent ${amount} in block ${sent.height}: ${sent.txId.toString('hex')}`);
    }
    await ask(node, 'GetTask', { taskId: Buffer.alloc(32) }).catch((error) => console.log(`${error.kind}: ${error.message}`));
  } finally {
    node.close();
  }
}

main(process.argv.slice(2)).catch((error) => {
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
});
