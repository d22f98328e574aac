#pragma once
#include <cstring>
#include <initializer_list>

#include "cuda/common.cuh"

/// Elements read and written several at a time, 16 bytes an access, and the places where gradients go.
namespace hedgehog::cuda {

/// Elements of type T in 16 bytes.
template <class T>
constexpr int kVector = 16 / int(sizeof(T));

/// N neighbouring elements in registers.
template <class T, int N>
struct alignas(N * sizeof(T) % 16 == 0 ? 16 : N * sizeof(T) % 8 == 0 ? 8 : sizeof(T)) Packet {
  T values[N];
  __device__ __forceinline__ T& operator[](int i) { return values[i]; }
  __device__ __forceinline__ const T& operator[](int i) const { return values[i]; }
};

/// `at` is aligned as a packet is: to 16 bytes, 8 or one element.
template <int N, class T>
__device__ __forceinline__ Packet<T, N> load_packet(const T* at) {
  Packet<T, N> packet;
  if constexpr (sizeof(packet) % 16 == 0) {
    uint4 words[sizeof(packet) / 16];
#pragma unroll
    for (int i = 0; i < int(sizeof(packet) / 16); ++i) words[i] = reinterpret_cast<const uint4*>(at)[i];
    memcpy(&packet, words, sizeof(packet));
  } else if constexpr (sizeof(packet) == 8) {
    const uint2 words = *reinterpret_cast<const uint2*>(at);
    memcpy(&packet, &words, sizeof(packet));
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) packet[i] = at[i];
  }
  return packet;
}

template <class T, int N>
__device__ __forceinline__ void store_packet(T* at, const Packet<T, N>& packet) {
  if constexpr (sizeof(packet) % 16 == 0) {
    uint4 words[sizeof(packet) / 16];
    memcpy(words, &packet, sizeof(packet));
#pragma unroll
    for (int i = 0; i < int(sizeof(packet) / 16); ++i) reinterpret_cast<uint4*>(at)[i] = words[i];
  } else if constexpr (sizeof(packet) == 8) {
    uint2 words;
    memcpy(&words, &packet, sizeof(packet));
    *reinterpret_cast<uint2*>(at) = words;
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) at[i] = packet[i];
  }
}

/// The elements of a packet, converted.
template <int N, class T, class A>
__device__ __forceinline__ void load_packet(const T* at, A (&values)[N]) {
  const Packet<T, N> packet = load_packet<N>(at);
#pragma unroll
  for (int i = 0; i < N; ++i) values[i] = convert<A>(packet[i]);
}
/// Writes or adds N values, rounding each once.
template <int N, class T, class A>
__device__ __forceinline__ void put_packet(T* at, const A (&values)[N], bool adds) {
  Packet<T, N> packet;
  if (adds) packet = load_packet<N>(static_cast<const T*>(at));
#pragma unroll
  for (int i = 0; i < N; ++i) packet[i] = convert<T>(adds ? A(convert<A>(packet[i]) + values[i]) : values[i]);
  store_packet(at, packet);
}

/// Whether all addresses allow 16-byte accesses; null ones do.
inline bool aligned(std::initializer_list<const void*> addresses) {
  for (const void* at : addresses)
    if (reinterpret_cast<std::uintptr_t>(at) % 16 != 0) return false;
  return true;
}
/// Whether every row starts where 16-byte accesses of T are allowed.
inline bool aligned_rows(const Ref& x) {
  const std::int64_t n = 16 / size_of(x.dtype);
  return aligned({x.data}) && (x.columns == x.stride || (x.columns % n == 0 && x.stride % n == 0));
}
/// Whether every vector starts where 16-byte accesses are allowed.
template <class T>
bool aligned(const Heads<T>& x) {
  return aligned({x.data}) && x.batch % kVector<T> == 0 && x.token % kVector<T> == 0 && x.head % kVector<T> == 0;
}

/// Where the gradient of an input of type T goes: elements of T, or f32 for a bf16 parameter; written or added to.
template <class T>
struct Target {
  void* data = nullptr;
  bool wide = false;  // f32 where T is bf16
  bool adds = false;

  Target() = default;
  Target(const Call& c, int i) : Target(c.dx[std::size_t(i)], cuda::adds(c, i)) {}
  Target(const Ref& dx, bool adds)
      : data(dx.data), wide(std::is_same_v<T, bf16> && dx && dx.dtype == Dtype::f32), adds(adds) {}
  __device__ __forceinline__ void put(std::int64_t i, Accumulator<T> value) const {
    if constexpr (std::is_same_v<T, bf16>) {
      if (wide) return store(static_cast<float*>(data) + i, value, adds);
    }
    store(static_cast<T*>(data) + i, value, adds);
  }
  template <int N>
  __device__ __forceinline__ void put(std::int64_t i, const Accumulator<T> (&values)[N]) const {
    if constexpr (std::is_same_v<T, bf16>) {
      if (wide) return put_packet<N>(static_cast<float*>(data) + i, values, adds);
    }
    put_packet<N>(static_cast<T*>(data) + i, values, adds);
  }
  __host__ __device__ explicit operator bool() const { return data != nullptr; }
};

/// The same in vectors (b, t, h) of a (B, T, H, D) tensor, as Heads has them.
template <class T>
struct HeadsTarget : Target<T> {
  std::int64_t batch = 0, token = 0, head = 0;  // elements from one to the next
  bool vector = false;  // elements of T that are written, 16 bytes at a time

  HeadsTarget() = default;
  HeadsTarget(const char* op, const Call& c, int i) : HeadsTarget(op, c.dx[std::size_t(i)], cuda::adds(c, i)) {}
  HeadsTarget(const char* op, const Ref& x, bool adds) : Target<T>(x, adds) {
    const Heads<T> rows(op, x);
    batch = rows.batch, token = rows.token, head = rows.head;
    vector = x && !this->wide && !adds && aligned(rows);
  }
  __device__ __forceinline__ std::int64_t at(std::int64_t b, std::int64_t t, std::int64_t h) const {
    return b * batch + t * token + h * head;
  }
};

/// Index division, in 32 bits where both fit: 64-bit division is slow on the device.
__device__ __forceinline__ std::int64_t quotient(std::int64_t a, std::int64_t b) {
  if (((a | b) >> 32) == 0) return std::int64_t(std::uint32_t(a) / std::uint32_t(b));
  return a / b;
}

}  // namespace hedgehog::cuda
