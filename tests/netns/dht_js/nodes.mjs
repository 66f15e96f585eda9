// Nodes of npm's bittorrent-dht, each at an address of its own; tests/netns/dht.py starts it.
//
//     node nodes.mjs MODULE BOOTSTRAP,... ADDRESS ...
//
// Prints `ready` once all listen and know others.  Commands on stdin, one a line, and what they print:
//     announce HEX PORT   announces PORT under an infohash, from the first node  `announced`
//     peers HEX           the peers that the DHT holds under an infohash         JSON, a list of HOST:PORT
import readline from 'node:readline'
import { pathToFileURL } from 'node:url'

const [module, bootstrap, ...addresses] = process.argv.slice(2)
const { default: DHT } = await import(pathToFileURL(module).href)
const PORT = 6881

function start (address) {
  const node = new DHT({ bootstrap: bootstrap.split(','), timeBucketOutdated: 3600e3 })
  node.on('error', () => {})
  return new Promise(resolve => {
    node.on('ready', () => resolve(node))
    node.listen(PORT, address)
  })
}

const nodes = await Promise.all(addresses.map(start))
console.log('ready')

for await (const line of readline.createInterface({ input: process.stdin })) {
  const [word, hash, port] = line.split(' ')
  if (word === 'announce') {
    await new Promise(resolve => nodes[0].announce(hash, Number(port), resolve))
    console.log('announced')
  } else {
    const found = new Set()
    const take = (peer, infoHash) => { if (infoHash.toString('hex') === hash) found.add(`${peer.host}:${peer.port}`) }
    nodes[0].on('peer', take)
    await new Promise(resolve => nodes[0].lookup(hash, resolve))
    nodes[0].off('peer', take)
    console.log(JSON.stringify([...found].sort()))
  }
}
process.exit(0)
