// Drives one of the npm clients: node drive.mjs '{"package":"ac630","operation":"save","paths":["data"],"key":"k"}'
// Its last line of output is the result as JSON; the lines before it are what the client told the user.
// "ms" in it times the operation: until its first request, until its last child process (tar) began, and until its end.
// Works for the CommonJS releases (3 to 5) and the ES module ones (6) alike. Works in the current directory.
import { createHash, randomBytes } from 'node:crypto'
import { subscribe } from 'node:diagnostics_channel'

const job = JSON.parse(process.argv[2])
const loaded = await import(job.package)
const client = loaded.default ?? loaded

const digest = (bytes) => createHash('sha256').update(bytes).digest('hex')

async function blob() {
  const { AnonymousCredential, BlockBlobClient } = client
  if (job.operation === 'upload') {
    const bytes = randomBytes(job.size)
    const target = new BlockBlobClient(job.url, new AnonymousCredential())
    await target.uploadData(bytes, { blockSize: job.blockSize, concurrency: 4, maxSingleShotSize: job.singleShot })
    return { sha256: digest(bytes) }
  }
  const source = new BlockBlobClient(job.url, new AnonymousCredential())
  const properties = await source.getProperties()
  const whole = await source.downloadToBuffer(0, undefined, { blockSize: 65536, concurrency: 4 })
  const part = await source.downloadToBuffer(job.offset, job.count)
  return { size: properties.contentLength, sha256: digest(whole), part: part.toString('base64') }
}

const operations = {
  save: () => client.saveCache(job.paths, job.key),
  restore: () => client.restoreCache(job.paths, job.key, job.restoreKeys),
  lookup: () => client.restoreCache(job.paths, job.key, job.restoreKeys, { lookupOnly: true }),
  available: () => client.isFeatureAvailable(),
  upload: blob,
  download: blob
}

const ms = {}
const began = performance.now()
const elapsed = () => performance.now() - began
subscribe('http.client.request.start', () => { ms.request ??= elapsed() })
subscribe('child_process', () => { ms.process = elapsed() })

let result
try {
  result = { value: (await operations[job.operation]()) ?? null }
} catch (error) {
  result = { error: { name: error.name, message: error.message } }
}
ms.end = elapsed()
console.log('\n' + JSON.stringify({ ...result, ms }))
process.exitCode = 0
