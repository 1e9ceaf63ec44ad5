// A node of the network from Node.js, straight from the contracts: nothing is generated, so nothing can be out of date.
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');
const tls = require('node:tls');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const CONTRACTS = process.env.POFL_PROTO || path.join(__dirname, '..', '..', 'proto');
const STREAM_SECONDS = 1800;

/** The services and messages of a contract, as `chain`. 64-bit numbers come as BigInt's decimal text, bytes as Buffer. */
function load(name) {
  const file = path.join('pofl', name, 'v1', `${name}.proto`);
  const options = { includeDirs: [CONTRACTS], longs: String, enums: String, defaults: true, oneofs: true };
  return grpc.loadPackageDefinition(loader.loadSync(file, options)).pofl[name].v1;
}

/** A client of the chain at `host:port`; `folder` holds ca.pem, tls.pem and tls.key of a user certificate. TLS 1.3 only. */
function connect(target, folder) {
  const read = (name) => fs.readFileSync(path.join(folder, name));
  const context = tls.createSecureContext({
    ca: read('ca.pem'), cert: read('tls.pem'), key: read('tls.key'), minVersion: 'TLSv1.3',
  });
  // A certificate names a role, not an address: addresses change.
  const options = {
    'grpc.ssl_target_name_override': 'node.pofl.internal',
    'grpc.default_authority': 'node.pofl.internal',
    'grpc.keepalive_time_ms': 20000,
  };
  const { ChainService } = load('chain');
  return new ChainService(target, grpc.credentials.createFromSecureContext(context), options);
}

const after = (seconds) => ({ deadline: Date.now() + 1000 * seconds });

/** One answer. Rejects with an Error that has the server's own sentence, its name for it, and a transaction's refusal word. */
function ask(client, method, request, seconds = 10) {
  return new Promise((resolve, reject) => {
    client[method](request, after(seconds), (error, answer) => (error ? reject(explain(error)) : resolve(answer)));
  });
}

/** A stream's answers, for ever: when it breaks off, a new one goes on. `request()` says from where. */
async function* watch(client, method, request, patience = 60) {
  let failing = null;
  for (;;) {
    const call = client[method](request(), after(STREAM_SECONDS));
    let failure = new Error('the node ended the stream');
    try {
      for await (const answer of call) {
        failing = null;
        yield answer;
      }
    } catch (error) {
      failure = error;
      const again = [grpc.status.UNAVAILABLE, grpc.status.DEADLINE_EXCEEDED, grpc.status.RESOURCE_EXHAUSTED];
      if (!again.includes(error.code)) throw explain(error);
    } finally {
      call.on('error', () => {});
      call.cancel();
    }
    failing ??= Date.now();
    if (Date.now() - failing > 1000 * patience) throw explain(failure);
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
}

function explain(error) {
  const trailer = (key) => String(error.metadata?.get(key)?.[0] ?? '');
  const better = new Error(error.details || error.message, { cause: error });
  return Object.assign(better, { code: error.code, kind: trailer('pofl-error'), reason: trailer('pofl-reason') });
}

/** Final blocks from a height on, each once. */
async function* watchBlocks(client, from) {
  let following = BigInt(from);
  for await (const { block } of watch(client, 'WatchBlocks', () => ({ fromHeight: String(following) }))) {
    if (BigInt(block.header.height) < following) continue;
    following = BigInt(block.header.height) + 1n;
    yield block;
  }
}

function u64(value) {
  const out = Buffer.alloc(8);
  out.writeBigUInt64BE(BigInt(value));
  return out;
}

/** An account from a key file of 64 hexadecimal digits. */
function readKey(file) {
  const seed = Buffer.from(fs.readFileSync(file, 'ascii').trim(), 'hex');
  if (seed.length !== 32) throw new Error(`${file} must hold 64 hexadecimal digits`);
  const pkcs8 = Buffer.concat([Buffer.from('302e020100300506032b657004220420', 'hex'), seed]);
  const secret = crypto.createPrivateKey({ key: pkcs8, format: 'der', type: 'pkcs8' });
  const account = crypto.createPublicKey(secret).export({ format: 'der', type: 'spki' }).subarray(-32);
  return { account, secret };
}

/** A signed transfer in canonical bytes (docs/protocol.md, part 2). */
function transfer(key, chainId, nonce, fee, to, amount) {
  const body = Buffer.concat([chainId, key.account, u64(nonce), u64(fee), Buffer.from([1]), to, u64(amount)]);
  const domain = Buffer.from('pofl/transaction-signature/1');
  const signature = crypto.sign(null, Buffer.concat([Buffer.from([domain.length]), domain, body]), key.secret);
  const size = Buffer.alloc(4);
  size.writeUInt32BE(body.length);
  return Buffer.concat([size, body, signature]);
}

/** Hands in a transfer and waits until it is final; the height of its block. */
async function send(client, key, to, amount, seconds = 60) {
  const genesis = await ask(client, 'GetGenesis', {});
  const { nextNonce } = await ask(client, 'GetAccount', { account: key.account });
  const fee = JSON.parse(genesis.genesisJson).params.min_fee;
  const signedTransaction = transfer(key, genesis.chainId, nextNonce, fee, to, amount);
  const { txId } = await ask(client, 'SubmitTransaction', { signedTransaction });
  for (const end = Date.now() + 1000 * seconds; Date.now() < end; ) {
    const found = await ask(client, 'GetTransaction', { txId });
    if (found.status === 'TRANSACTION_STATUS_FINAL') return { txId, height: found.height };
    if (found.status === 'TRANSACTION_STATUS_REFUSED') throw new Error(`transaction refused: ${found.reason}`);
    await new Promise((resolve) => setTimeout(resolve, 250));
  }
  throw new Error(`transaction ${txId.toString('hex')} is not final after ${seconds} s`);
}

module.exports = { ask, connect, load, readKey, send, transfer, watch, watchBlocks };
