// A Helia node on loopback, told what to do by JSON lines on stdin; one JSON line on stdout answers each.
// Asks: {do: "add", path} {do: "get", cid, path} {do: "connect", address} {do: "provide", cid} {do: "find", cid}
// {do: "publish", key, cid} (gives the name) {do: "resolve", name} (gives a path) {do: "listen", topic}
// {do: "hear", topic} (waits for a message) {do: "say", topic, data} {do: "hearers", topic} {do: "speaks", peer}.
// Answers: {ok: value} or {error: text}; the first line says {ok: {id, addresses}} when the node is up.
import { createWriteStream, createReadStream } from 'node:fs'
import { mkdir, readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { ipns } from '@helia/ipns'
import { unixfs } from '@helia/unixfs'
import { circuitRelayTransport } from '@libp2p/circuit-relay-v2'
import { gossipsub } from '@libp2p/gossipsub'
import { identify } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createHelia } from 'helia'
import { CID } from 'multiformats/cid'

const ANSWER_WITHIN_MS = 60_000
const answer = (value) => process.stdout.write(JSON.stringify(value) + '\n')
console.log = console.error // libraries must not write between our answers

const helia = await createHelia({
  http: {},
  libp2p: {
    addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
    transports: [tcp(), circuitRelayTransport()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    peerDiscovery: [],
    connectionGater: { denyDialMultiaddr: () => false },
    services: {
      identify: identify(),
      ping: ping(),
      dht: kadDHT({
        protocol: '/ipfs/lan/kad/1.0.0',
        clientMode: false,
        allowQueryWithZeroPeers: true,
        peerInfoMapper: passthroughMapper
      }),
      pubsub: gossipsub({ emitSelf: false, allowPublishToZeroTopicPeers: true, floodPublish: false })
    }
  }
})
await helia.start?.()
const files = unixfs(helia)
// The DHT alone: Helia's own choice asks servers on the internet beside it, and fails where they do not answer.
const { datastore, logger, keychain, events, libp2p } = helia
const names = ipns({ datastore, logger, keychain, events, libp2p, routing: libp2p.contentRouting })
const pubsub = helia.libp2p.services.pubsub

const heard = [] // messages that nobody asked for yet, and those who wait for one
const waiting = []
pubsub.addEventListener('message', ({ detail: { topic, data } }) => {
  heard.push({ topic, text: Buffer.from(data).toString() })
  waiting.splice(0).forEach((wake) => wake())
})

async function hear (topic, signal) {
  for (;;) {
    const at = heard.findIndex((message) => message.topic === topic)
    if (at !== -1) return heard.splice(at, 1)[0].text
    signal.throwIfAborted()
    await new Promise((resolve) => { waiting.push(resolve); setTimeout(resolve, 100) })
  }
}

async function save (cid, path, signal) {
  const about = await files.stat(cid, { signal })
  if (about.type !== 'directory') {
    await pipeline(Readable.from(files.cat(cid, { signal })), createWriteStream(path))
    return
  }
  await mkdir(path, { recursive: true })
  for await (const entry of files.ls(cid, { signal })) await save(entry.cid, join(path, entry.name), signal)
}

async function add (path) {
  if (!(await stat(path)).isDirectory()) {
    return files.addByteStream(createReadStream(path, { highWaterMark: 1 << 18 }))
  }
  let folder = await files.addDirectory()
  for (const name of await readdir(path)) folder = await files.cp(await add(join(path, name)), folder, name)
  return folder
}

const operations = {
  add: async ({ path }) => String(await add(path)),
  get: async ({ cid, path }, signal) => { await save(CID.parse(cid), path, signal); return 0 },
  connect: async ({ address }, signal) => { await helia.libp2p.dial(multiaddr(address), { signal }); return 0 },
  provide: async ({ cid }, signal) => { await helia.libp2p.contentRouting.provide(CID.parse(cid), { signal }); return 0 },
  find: async ({ cid }, signal) => {
    const found = []
    for await (const peer of helia.libp2p.contentRouting.findProviders(CID.parse(cid), { signal })) found.push(String(peer.id))
    return found
  },
  publish: async ({ key, cid }, signal) => {
    return (await names.publish(key, CID.parse(cid), { signal })).name
  },
  resolve: async ({ name }, signal) => {
    for await (const { value, record } of names.resolve(name, { signal, nocache: true })) {
      return String(value ?? record.value)
    }
    return null
  },
  listen: ({ topic }) => { pubsub.subscribe(topic); return 0 },
  hear: ({ topic }, signal) => hear(topic, signal),
  say: async ({ topic, data }) => (await pubsub.publish(topic, Buffer.from(data))).recipients.length,
  hearers: ({ topic }) => pubsub.getSubscribers(topic).map(String),
  speaks: async ({ peer }) => {
    const known = await helia.libp2p.peerStore.all()
    return known.find(({ id }) => String(id) === peer)?.protocols ?? []
  }
}

answer({ ok: { id: String(helia.libp2p.peerId), addresses: helia.libp2p.getMultiaddrs().map(String) } })
for await (const line of createInterface({ input: process.stdin })) {
  const ask = JSON.parse(line)
  try {
    answer({ ok: await operations[ask.do](ask, AbortSignal.timeout(ANSWER_WITHIN_MS)) })
  } catch (error) {
    answer({ error: `${error.name}: ${error.message}` })
  }
}
process.exit(0)
