// xxh3-128 (seed 0, its default secret) of each layer of a payload, as xxhash defines it for inputs over 240 bytes.
//
// An input is blocks of 1024 bytes, each 16 stripes of 8 words. Eight accumulators, one for each word of a stripe, take
// in one block after the other; what a block adds does not depend on the one before, so `block_sums` finds it for all
// blocks at once, and only the short mixing from block to block (`chain`) is one step after the other. `finish` folds
// the eight accumulators of a layer into its digest.
//
// No intrinsic of one compiler but __umul64hi: tests build this very source for the host too.

typedef unsigned long long u64;
typedef unsigned int u32;

#define STRIPES 16
#define WORDS 8
#define BLOCK_WORDS (STRIPES * WORDS)
#define PRIME32_1 0x9E3779B1ULL
#define PRIME64_1 0x9E3779B185EBCA87ULL
#define PRIME64_2 0xC2B2AE3D27D4EB4FULL

__constant__ u64 SECRET[24] = {
    0xbe4ba423396cfeb8ULL, 0x1cad21f72c81017cULL, 0xdb979083e96dd4deULL, 0x1f67b3b7a4a44072ULL,
    0x78e5c0cc4ee679cbULL, 0x2172ffcc7dd05a82ULL, 0x8e2443f7744608b8ULL, 0x4c263a81e69035e0ULL,
    0xcb00c391bb52283cULL, 0xa32e531b8b65d088ULL, 0x4ef90da297486471ULL, 0xd8acdea946ef1938ULL,
    0x3f349ce33f76faa8ULL, 0x1d4f0bc7c7bbdcf9ULL, 0x3159b4cd4be0518aULL, 0x647378d9c97e9fc8ULL,
    0xc3ebd33483acc5eaULL, 0xeb6313faffa081c5ULL, 0x49daf0b751dd0d17ULL, 0x9e68d429265516d3ULL,
    0xfca1477d58be162bULL, 0xce31d07ad1b8f88fULL, 0x280416958f3acb45ULL, 0x7e404bbbcafbd7afULL,
};

__constant__ u64 START[WORDS] = {
    0xC2B2AE3DULL, PRIME64_1, PRIME64_2, 0x165667B19E3779F9ULL,
    0x85EBCA77C2B2AE63ULL, 0x85EBCA77ULL, 0x27D4EB2F165667C5ULL, PRIME32_1,
};

// The eight bytes of the secret from `offset` on.
static __device__ u64 secret_word(int offset) {
    int shift = 8 * (offset % 8);
    u64 low = SECRET[offset / 8] >> shift;
    return shift ? low | SECRET[offset / 8 + 1] << (64 - shift) : low;
}

// What one stripe adds to accumulator `word`; `secret` is where the stripe's part of the secret starts.
static __device__ u64 stripe_sum(const u64* stripe, int word, int secret) {
    u64 keyed = stripe[word] ^ secret_word(secret + 8 * word);
    return stripe[word ^ 1] + (u64)(u32)keyed * (keyed >> 32);
}

// One thread for each layer, block and word; words of a block side by side, so that neighbours read neighbours.
extern "C" __global__ void block_sums(const u64* payload, u64* sums, int layers, int layer_words, int blocks) {
    u64 place = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (place >= (u64)layers * blocks * WORDS) return;
    int word = place % WORDS;
    u64 block = place / WORDS % blocks, layer = place / WORDS / blocks;
    const u64* data = payload + layer * layer_words + block * BLOCK_WORDS;
    // The last block is what whole blocks leave, but for the last stripe; it is mixed in by `chain`.
    int stripes = (layer_words - (int)block * BLOCK_WORDS - 1) / WORDS;
    if (stripes > STRIPES) stripes = STRIPES;
    u64 sum = 0;
    for (int i = 0; i < stripes; i++) sum += stripe_sum(data + i * WORDS, word, 8 * i);
    sums[place] = sum;
}

// One thread for each layer and word.
extern "C" __global__ void chain(const u64* payload, const u64* sums, u64* ends, int layers, int layer_words, int blocks) {
    int place = blockIdx.x * blockDim.x + threadIdx.x;
    if (place >= layers * WORDS) return;
    int word = place % WORDS;
    u64 layer = place / WORDS, key = secret_word(192 - 64 + 8 * word), end = START[word];
    const u64* sum = sums + layer * blocks * WORDS + word;
    int block = 0;
    // Loaded ahead of the steps that need them, each of which waits for the one before.
    for (; block + 16 < blocks; block += 16) {
        u64 next[16];
#pragma unroll
        for (int i = 0; i < 16; i++) next[i] = sum[(u64)(block + i) * WORDS];
#pragma unroll
        for (int i = 0; i < 16; i++) {
            end += next[i];
            end = ((end ^ (end >> 47)) ^ key) * PRIME32_1;
        }
    }
    for (; block + 1 < blocks; block++) {
        end += sum[(u64)block * WORDS];
        end = ((end ^ (end >> 47)) ^ key) * PRIME32_1;
    }
    end += sum[(u64)block * WORDS];
    const u64* last = payload + (layer + 1) * layer_words - WORDS;
    ends[place] = end + stripe_sum(last, word, 192 - 64 - 7);
}

static __device__ u64 folded(const u64* ends, int secret, u64 start) {
    u64 sum = start;
    for (int i = 0; i < 4; i++) {
        u64 a = ends[2 * i] ^ secret_word(secret + 16 * i), b = ends[2 * i + 1] ^ secret_word(secret + 16 * i + 8);
        sum += (a * b) ^ __umul64hi(a, b);
    }
    sum = (sum ^ (sum >> 37)) * 0x165667919E3779F9ULL;
    return sum ^ (sum >> 32);
}

static __device__ void store_big_endian(unsigned char* out, u64 word) {
    for (int i = 0; i < 8; i++) out[i] = (unsigned char)(word >> (56 - 8 * i));
}

// One thread for each layer: 16 bytes, as xxhash prints them.
extern "C" __global__ void finish(const u64* ends, unsigned char* digests, int layers, int layer_words) {
    int layer = blockIdx.x * blockDim.x + threadIdx.x;
    if (layer >= layers) return;
    u64 nbytes = (u64)layer_words * 8;
    store_big_endian(digests + 16 * layer, folded(ends + layer * WORDS, 192 - 64 - 11, ~(nbytes * PRIME64_2)));
    store_big_endian(digests + 16 * layer + 8, folded(ends + layer * WORDS, 11, nbytes * PRIME64_1));
}
