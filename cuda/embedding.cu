#include <algorithm>

#include "cuda/early_launch.cuh"
#include "cuda/packet.cuh"

namespace hedgehog::cuda {
namespace {

constexpr unsigned kWarps = 8;       // of a block
constexpr int kChunk = 1024;         // tokens that one block puts in order at a time
constexpr std::int64_t kItem = 32;   // rows of one token that one warp adds up

/// A warp for each token. A token outside the table gives a row of NaN.
template <class T, int N>
__global__ void embedding_forward_kernel(const std::int32_t* tokens, const T* table, const T* positions, T* y, std::int64_t rows,
                                         std::int64_t length, std::int64_t vocabulary, std::int64_t columns) {
  using A = Accumulator<T>;
  start_next_kernel();
  wait_for_kernels();
  const std::int64_t first = std::int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  for (std::int64_t row = first; row < rows; row += std::int64_t(gridDim.x) * kWarps) {
    const std::int64_t id = tokens[row], t = row - quotient(row, length) * length;
    const bool known = id >= 0 && id < vocabulary;
    for (std::int64_t c = std::int64_t(threadIdx.x % kWarp) * N; c < columns; c += kWarp * N) {
      Packet<T, N> out;
      if (known) out = load_packet<N>(table + id * columns + c);
      if (!known) {
#pragma unroll
        for (int i = 0; i < N; ++i) out[i] = convert<T>(A(__int_as_float(0x7fffffff)));
      } else if (positions) {
        const Packet<T, N> position = load_packet<N>(positions + t * columns + c);
#pragma unroll
        for (int i = 0; i < N; ++i) out[i] = convert<T>(convert<A>(out[i]) + convert<A>(position[i]));
      }
      store_packet(y + row * columns + c, out);
    }
  }
}

void forward(const Call& c) {
  const Ref &tokens = c.inputs[0], &table = c.inputs[1], &positions = c.inputs[2];
  const std::int64_t rows = tokens.size(), columns = table.shape[1];
  dispatch_floating(table.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int N = kVector<T>;
    const T* const from = positions ? positions.as<T>() + c.attributes.integer("offset") * columns : nullptr;
    auto launch = [&](auto kernel) {
      launch_early("embedding", kernel, blocks_for(rows, kWarps), kWarps * kWarp, 0, tokens.as<std::int32_t>(), table.as<T>(), from,
                   c.outputs[0].as<T>(), rows, tokens.shape.last(), table.shape[0], columns);
    };
    const bool vectors = columns % N == 0 && aligned({table.data, from, c.outputs[0].data});
    vectors ? launch(embedding_forward_kernel<T, N>) : launch(embedding_forward_kernel<T, 1>);
  });
}

/// How the gradient of the table is summed: the tokens' places are put in the order of their ids (a stable counting sort, in
/// integers), and the rows of one id are added in the order of the tokens, `kItem` at a time.
struct Sort {
  std::int64_t tokens, vocabulary, columns;
  std::int64_t chunk, chunks;  // tokens of one chunk, counted apart; chunks
  Sort(const Shape& tokens_shape, const Shape& table)
      : tokens(tokens_shape.size()), vocabulary(table[0]), columns(table[1]) {
    // the counts take 64 MiB at most, or one row
    const std::int64_t most = std::clamp<std::int64_t>((std::int64_t(16) << 20) / vocabulary, 1, 32);
    const std::int64_t wanted = std::clamp<std::int64_t>((tokens + kChunk - 1) / kChunk, 1, most);
    chunk = ((tokens + wanted - 1) / wanted + kChunk - 1) / kChunk * kChunk;
    chunks = (tokens + chunk - 1) / chunk;
  }
  static std::int64_t padded(std::int64_t bytes) { return (bytes + 255) / 256 * 256; }
  // places in the workspace, bytes
  std::int64_t starts_at() const { return padded(tokens * 4); }
  std::int64_t counts_at() const { return starts_at() + padded((vocabulary + 1) * 4); }
  std::int64_t partials_at() const { return counts_at() + padded(chunks * vocabulary * 4); }
  std::int64_t slots() const { return 2 * ((tokens + kItem - 1) / kItem); }
  std::int64_t bytes(std::int64_t element) const { return partials_at() + slots() * columns * element; }
};

/// counts[chunk][id] = how often. Additions of integers: their order does not matter.
__global__ void embedding_count_kernel(const std::int32_t* tokens, std::int64_t n, std::int64_t vocabulary, std::int64_t chunk,
                                       std::int32_t* counts) {
  for (std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += std::int64_t(gridDim.x) * blockDim.x) {
    const std::int64_t id = tokens[i];
    if (id >= 0 && id < vocabulary) atomicAdd(counts + quotient(i, chunk) * vocabulary + id, 1);
  }
}

/// A thread for each id: counts[chunk][id] becomes how many are in the chunks before; totals[id] is how many there are.
__global__ void embedding_chunk_scan_kernel(std::int32_t* counts, std::int64_t chunks, std::int64_t vocabulary, std::int32_t* totals) {
  const std::int64_t id = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (id >= vocabulary) return;
  std::int32_t running = 0;
  for (std::int64_t k = 0; k < chunks; ++k) {
    const std::int32_t count = counts[k * vocabulary + id];
    counts[k * vocabulary + id] = running;
    running += count;
  }
  totals[id] = running;
}

/// starts[id] becomes the sum of the totals before it, starts[vocabulary] that of all. One block; a thread owns a run of ids.
__global__ void __launch_bounds__(1024) embedding_start_kernel(std::int32_t* starts, std::int64_t vocabulary) {
  __shared__ std::int32_t sums[32];
  const std::int64_t each = (vocabulary + blockDim.x - 1) / blockDim.x;
  const std::int64_t begin = min(vocabulary, std::int64_t(threadIdx.x) * each), end = min(vocabulary, begin + each);
  std::int32_t own = 0;
  for (std::int64_t id = begin; id < end; ++id) own += starts[id];
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  std::int32_t through = own;  // of this warp's threads up to this one
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const std::int32_t before = __shfl_up_sync(0xffffffffu, through, offset);
    if (int(lane) >= offset) through += before;
  }
  if (lane == 31) sums[warp] = through;
  __syncthreads();
  std::int32_t running = through - own;
  for (unsigned w = 0; w < warp; ++w) running += sums[w];
  for (std::int64_t id = begin; id < end; ++id) {
    const std::int32_t total = starts[id];
    starts[id] = running;
    running += total;
  }
  if (threadIdx.x == blockDim.x - 1) starts[vocabulary] = running;
}

/// order[start of id + how many of that id came before] = place of the token. A block walks its chunk, `kChunk` tokens at a
/// time; among these a thread counts by looking at all of them, so that no order depends on timing.
__global__ void __launch_bounds__(kChunk) embedding_order_kernel(const std::int32_t* tokens, std::int64_t n, std::int64_t vocabulary,
                                                                 std::int64_t chunk, const std::int32_t* starts, std::int32_t* counts,
                                                                 std::int32_t* order) {
  __shared__ int4 shared[kChunk / 4];
  std::int32_t* const ids = reinterpret_cast<std::int32_t*>(shared);
  std::int32_t* const before = counts + std::int64_t(blockIdx.x) * vocabulary;
  const std::int64_t end = min(n, (std::int64_t(blockIdx.x) + 1) * chunk);
  const int own = int(threadIdx.x);
  for (std::int64_t begin = std::int64_t(blockIdx.x) * chunk; begin < end; begin += kChunk) {
    const std::int64_t place = begin + own;
    std::int32_t id = place < end ? tokens[place] : -1;
    if (id < 0 || id >= vocabulary) id = -1;
    ids[own] = id;
    __syncthreads();
    std::int32_t rank = 0, all = 0;
    if (id >= 0) {
#pragma unroll 8
      for (int k = 0; k < kChunk / 4; ++k) {
        const int4 four = shared[k];
        const int same = (four.x == id) + (four.y == id) + (four.z == id) + (four.w == id);
        all += same;
        if (4 * k + 3 < own) rank += same;
        else if (4 * k <= own)
          rank += (four.x == id && 4 * k < own) + (four.y == id && 4 * k + 1 < own) + (four.z == id && 4 * k + 2 < own);
      }
    }
    const std::int32_t earlier = id >= 0 ? before[id] : 0;
    __syncthreads();
    if (id >= 0) {
      order[starts[id] + earlier + rank] = std::int32_t(place);
      if (rank == all - 1) before[id] = earlier + all;
    }
    __syncthreads();
  }
}

/// Adds up to `kItem` rows of dy of one token id: all of them, which go to the gradient, or a part of an id with more, which
/// goes to a slot of the workspace. A warp for each place of the order and each `32 N` columns; those where no part begins
/// have nothing to do. Two parts that begin within `kItem` places are the last of one id and the first of the next, so the
/// slots are distinct.
template <class T, int N>
__global__ void embedding_rows_kernel(const std::int32_t* tokens, const T* dy, const std::int32_t* order, const std::int32_t* starts,
                                      std::int64_t vocabulary, std::int64_t columns, Accumulator<T>* partials, Target<T> dtable) {
  using A = Accumulator<T>;
  const std::int64_t place = std::int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (place >= starts[vocabulary]) return;
  const std::int64_t id = tokens[order[place]], begin = starts[id], end = starts[id + 1];
  if ((place - begin) % kItem != 0) return;
  const int rows = int(min(kItem, end - place));
  for (std::int64_t c = (std::int64_t(blockIdx.y) * kWarp + threadIdx.x % kWarp) * N; c < columns; c += std::int64_t(gridDim.y) * kWarp * N) {
    A sum[N] = {};
#pragma unroll 4
    for (int k = 0; k < rows; ++k) {
      const Packet<T, N> row = load_packet<N>(dy + order[place + k] * columns + c);
#pragma unroll
      for (int i = 0; i < N; ++i) sum[i] += convert<A>(row[i]);
    }
    if (end - begin <= kItem) {
      dtable.put(id * columns + c, sum);
    } else {
      const std::int64_t slot = 2 * (place / kItem) + (place == begin ? 1 : 0);
      put_packet<N>(partials + slot * columns + c, sum, false);
    }
  }
}

/// Adds the parts of ids with more than `kItem` rows, in order. A warp for each id and each `32 N` columns.
template <class T, int N>
__global__ void embedding_parts_kernel(const Accumulator<T>* partials, const std::int32_t* starts, std::int64_t vocabulary,
                                       std::int64_t columns, Target<T> dtable) {
  using A = Accumulator<T>;
  for (std::int64_t id = std::int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp; id < vocabulary; id += std::int64_t(gridDim.x) * kWarps) {
    const std::int64_t begin = starts[id], end = starts[id + 1];
    if (end - begin <= kItem) continue;
    for (std::int64_t c = (std::int64_t(blockIdx.y) * kWarp + threadIdx.x % kWarp) * N; c < columns; c += std::int64_t(gridDim.y) * kWarp * N) {
      A sum[N] = {};
#pragma unroll 4
      for (std::int64_t place = begin; place < end; place += kItem) {
        const std::int64_t slot = 2 * (place / kItem) + (place == begin ? 1 : 0);
        const Packet<A, N> part = load_packet<N>(partials + slot * columns + c);
#pragma unroll
        for (int i = 0; i < N; ++i) sum[i] += part[i];
      }
      dtable.put(id * columns + c, sum);
    }
  }
}

/// dpositions[t] = sum_b dy[b, t]: a thread for N columns of a position walks the batch.
template <class T, int N>
__global__ void embedding_positions_kernel(const T* dy, std::int64_t batch, std::int64_t size, std::int64_t offset, Target<T> dpositions) {
  using A = Accumulator<T>;
  for (std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i * N < size; i += std::int64_t(gridDim.x) * blockDim.x) {
    A sum[N] = {};
#pragma unroll 8
    for (std::int64_t b = 0; b < batch; ++b) {
      const Packet<T, N> row = load_packet<N>(dy + b * size + i * N);
#pragma unroll
      for (int k = 0; k < N; ++k) sum[k] += convert<A>(row[k]);
    }
    dpositions.put(offset + i * N, sum);
  }
}

void clear(const Ref& x) { check(cudaMemsetAsync(x.data, 0, std::size_t(x.size() * size_of(x.dtype)), stream()), "embedding backward"); }

template <class T>
void table_backward(const Call& c, const T* dy) {
  const Sort s(c.inputs[0].shape, c.inputs[1].shape);
  if (s.tokens > 0x7fffffff) throw ShapeError("[embedding] backward takes up to 2^31 - 1 tokens a call; use a smaller batch");
  const Target<T> dtable(c, 1);
  // rows that no token takes
  if (!dtable.adds) clear(c.dx[1]);
  if (!dy) return;
  const std::int32_t* const tokens = c.inputs[0].as<std::int32_t>();
  std::byte* const workspace = static_cast<std::byte*>(c.workspace);
  auto* const order = reinterpret_cast<std::int32_t*>(workspace);
  auto* const starts = reinterpret_cast<std::int32_t*>(workspace + s.starts_at());
  auto* const counts = reinterpret_cast<std::int32_t*>(workspace + s.counts_at());
  auto* const partials = reinterpret_cast<Accumulator<T>*>(workspace + s.partials_at());
  check(cudaMemsetAsync(counts, 0, std::size_t(s.chunks * s.vocabulary * 4), stream()), "embedding backward");
  embedding_count_kernel<<<blocks_for(s.tokens, 256), 256, 0, stream()>>>(tokens, s.tokens, s.vocabulary, s.chunk, counts);
  embedding_chunk_scan_kernel<<<unsigned((s.vocabulary + 255) / 256), 256, 0, stream()>>>(counts, s.chunks, s.vocabulary, starts);
  embedding_start_kernel<<<1, 1024, 0, stream()>>>(starts, s.vocabulary);
  embedding_order_kernel<<<unsigned(s.chunks), kChunk, 0, stream()>>>(tokens, s.tokens, s.vocabulary, s.chunk, starts, counts, order);
  auto launch = [&](auto width) {
    constexpr int N = width.value;
    const unsigned slabs = unsigned(std::min<std::int64_t>(64, (s.columns + kWarp * N - 1) / (kWarp * N)));
    embedding_rows_kernel<T, N><<<dim3(unsigned((s.tokens + kWarps - 1) / kWarps), slabs), kWarps * kWarp, 0, stream()>>>(
        tokens, dy, order, starts, s.vocabulary, s.columns, partials, dtable);
    if (s.tokens > kItem)
      embedding_parts_kernel<T, N><<<dim3(blocks_for(s.vocabulary, kWarps, 8192), slabs), kWarps * kWarp, 0, stream()>>>(
          partials, starts, s.vocabulary, s.columns, dtable);
  };
  if (s.columns % kVector<T> == 0 && aligned({dy, dtable.data})) launch(std::integral_constant<int, kVector<T>>{});
  else launch(std::integral_constant<int, 1>{});
  check_launch("embedding");
}

template <class T>
void positions_backward(const Call& c, const T* dy) {
  const Target<T> dpositions(c, 2);
  const std::int64_t length = c.inputs[0].shape.last(), columns = c.inputs[1].shape[1], size = length * columns;
  if (!dpositions.adds && (!dy || c.dx[2].size() != size)) clear(c.dx[2]);
  if (!dy) return;
  const std::int64_t batch = c.inputs[0].size() / length, offset = c.attributes.integer("offset") * columns;
  auto launch = [&](auto width) {
    constexpr int N = width.value;
    embedding_positions_kernel<T, N><<<blocks_for(size / N, 128), 128, 0, stream()>>>(dy, batch, size, offset, dpositions);
  };
  if (columns % kVector<T> == 0 && aligned({dy, dpositions.data})) launch(std::integral_constant<int, kVector<T>>{});
  else launch(std::integral_constant<int, 1>{});
  check_launch("embedding");
}

void backward(const Call& c) {
  dispatch_floating(c.inputs[1].dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* const dy = c.dy[0].as<T>();
    if (c.dx[1]) table_backward<T>(c, dy);
    if (c.dx[2]) positions_backward<T>(c, dy);
  });
}

}  // namespace

void register_embedding(KernelTable& table) {
  table["embedding"] = {forward, backward, {}, [](const Attributes&, std::span<const Meta> in) {
                          return Sort(in[0].shape, in[1].shape).bytes(size_of(accumulator_of(in[1].dtype)));
                        }};
}

}  // namespace hedgehog::cuda
