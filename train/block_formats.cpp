#include "train/block_formats.h"

#include <bit>
#include <cstring>

namespace hedgehog {
namespace {

template <class T>
T read_as(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

float of_bf16(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t(bits) << 16); }

/// IEEE 754 binary16: sign, 5 bits of exponent, 10 of mantissa.
float of_f16(std::uint16_t bits) {
  const std::uint32_t sign = std::uint32_t(bits & 0x8000) << 16, exponent = bits >> 10 & 31, mantissa = bits & 0x3ff;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000 | mantissa << 13);
  if (exponent == 0) return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(float(mantissa) * 0x1p-24f));
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

float half_at(const std::byte* from) { return of_f16(read_as<std::uint16_t>(from)); }
int low(std::byte b) { return std::to_integer<int>(b) & 15; }
int high(std::byte b) { return std::to_integer<int>(b) >> 4; }

void read_f32(const std::byte* from, float* to) { *to = read_as<float>(from); }
void read_f16(const std::byte* from, float* to) { *to = half_at(from); }
void read_bf16(const std::byte* from, float* to) { *to = of_bf16(read_as<std::uint16_t>(from)); }

void read_q8_0(const std::byte* from, float* to) {
  const float d = half_at(from);
  for (int i = 0; i < 32; ++i) to[i] = d * float(read_as<std::int8_t>(from + 2 + i));
}

/// d (q - center), or d q + m; 16 bytes hold q_0 … q_15 in their lower halves, q_16 … q_31 in the upper. `fifth` has bit i of q_i, or is 0.
void read_nibbles(const std::byte* q, std::uint32_t fifth, float d, int center, float m, float* to) {
  for (int i = 0; i < 16; ++i) {
    const int a = low(q[i]) | int(fifth >> i & 1) << 4, b = high(q[i]) | int(fifth >> (i + 16) & 1) << 4;
    to[i] = d * float(a - center) + m;
    to[i + 16] = d * float(b - center) + m;
  }
}
void read_q4_0(const std::byte* from, float* to) { read_nibbles(from + 2, 0, half_at(from), 8, 0, to); }
void read_q4_1(const std::byte* from, float* to) { read_nibbles(from + 4, 0, half_at(from), 0, half_at(from + 2), to); }
void read_q5_0(const std::byte* from, float* to) {
  read_nibbles(from + 6, read_as<std::uint32_t>(from + 2), half_at(from), 16, 0, to);
}
void read_q5_1(const std::byte* from, float* to) {
  read_nibbles(from + 8, read_as<std::uint32_t>(from + 4), half_at(from), 0, half_at(from + 2), to);
}

/// Pair i of the eight pairs of 6 bits in 12 bytes: the first four lie whole in bytes i and i + 4, whose upper 2 bits belong to the others.
void read_pair(const std::byte* packed, int i, int& scale, int& least) {
  const auto byte = [&](int at) { return std::to_integer<int>(packed[at]); };
  scale = i < 4 ? byte(i) & 63 : (byte(i + 4) & 15) | byte(i - 4) >> 6 << 4;
  least = i < 4 ? byte(i + 4) & 63 : byte(i + 4) >> 4 | byte(i) >> 6 << 4;
}

/// Q4_K and Q5_K, whose fifth bits are in `fifth` (or null): bit 2 c + h of byte i belongs to element i of half h of chunk c.
void read_pairs(const std::byte* from, const std::byte* fifth, const std::byte* q, float* to) {
  const float d = half_at(from), e = half_at(from + 2);
  for (int part = 0; part < 8; ++part) {  // 32 elements: the lower or upper halves of 32 bytes
    int scale, least;
    read_pair(from + 4, part, scale, least);
    const float s = d * float(scale), t = e * float(least);
    for (int i = 0; i < 32; ++i) {
      const std::byte b = q[part / 2 * 32 + i];
      const int more = fifth ? std::to_integer<int>(fifth[i]) >> part & 1 : 0;
      to[part * 32 + i] = s * float((part % 2 ? high(b) : low(b)) | more << 4) - t;
    }
  }
}
void read_q4_k(const std::byte* from, float* to) { read_pairs(from, nullptr, from + 16, to); }
void read_q5_k(const std::byte* from, float* to) { read_pairs(from, from + 16, from + 48, to); }

void read_q6_k(const std::byte* from, float* to) {
  const float d = half_at(from + 208);
  for (int half = 0; half < 2; ++half)  // 128 elements: 64 bytes of lower bits, 32 of upper
    for (int part = 0; part < 4; ++part)
      for (int i = 0; i < 32; ++i) {
        const std::byte b = from[half * 64 + part % 2 * 32 + i];
        const int upper = std::to_integer<int>(from[128 + half * 32 + i]) >> 2 * part & 3;
        const int scale = read_as<std::int8_t>(from + 192 + half * 8 + part * 2 + i / 16);
        to[half * 128 + part * 32 + i] = d * float(scale) * float(((part < 2 ? low(b) : high(b)) | upper << 4) - 32);
      }
}

/// A format of blocks that `Read` reads one of.
template <std::int64_t kElements, std::int64_t kBytes, void (*Read)(const std::byte*, float*)>
constexpr BlockFormat blocks_of(std::string_view name) {
  return {name, kElements, kBytes, [](const std::byte* from, std::int64_t blocks, float* to) {
            for (std::int64_t i = 0; i < blocks; ++i) Read(from + i * kBytes, to + i * kElements);
          }};
}

constexpr BlockFormat kFormats[] = {
    blocks_of<1, 4, read_f32>("F32"),      blocks_of<1, 2, read_f16>("F16"),      blocks_of<1, 2, read_bf16>("BF16"),
    blocks_of<32, 34, read_q8_0>("Q8_0"),  blocks_of<32, 18, read_q4_0>("Q4_0"),  blocks_of<32, 20, read_q4_1>("Q4_1"),
    blocks_of<32, 22, read_q5_0>("Q5_0"),  blocks_of<32, 24, read_q5_1>("Q5_1"),  blocks_of<256, 144, read_q4_k>("Q4_K"),
    blocks_of<256, 176, read_q5_k>("Q5_K"), blocks_of<256, 210, read_q6_k>("Q6_K")};

}  // namespace

const BlockFormat& block_format(ElementFormat format) { return kFormats[std::size_t(format)]; }

}  // namespace hedgehog
