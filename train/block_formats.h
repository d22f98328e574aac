#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace hedgehog {

/// How a foreign file stores numbers: one by one, or in GGUF's blocks of few bits with common scales.
enum class ElementFormat : std::uint8_t { f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k, q6_k };

/// A block of a format: so many elements in so many bytes.
///
/// name      as GGUF's tools print it
/// elements  1 for numbers that stand alone; a row is whole blocks
/// bytes     little-endian
/// read      so many blocks as f32
struct BlockFormat {
  std::string_view name;
  std::int64_t elements, bytes;
  void (*read)(const std::byte* from, std::int64_t blocks, float* to);
};

inline constexpr std::int64_t kMostBlockElements = 256;

/// | format     | a block of                                                                  | an element             |
/// | ---------- | --------------------------------------------------------------------------- | ---------------------- |
/// | F32 F16 BF16 | one number                                                                | itself                 |
/// | Q8_0       | f16 d, 32 int8 q                                                            | d q                    |
/// | Q4_0       | f16 d, 32 q of 4 bits                                                       | d (q - 8)              |
/// | Q4_1       | f16 d, f16 m, 32 q of 4 bits                                                | d q + m                |
/// | Q5_0       | f16 d, 32 fifth bits, 32 q of 4 bits                                        | d (q - 16)             |
/// | Q5_1       | f16 d, f16 m, 32 fifth bits, 32 q of 4 bits                                 | d q + m                |
/// | Q4_K       | f16 d, f16 e, 8 pairs (s, t) of 6 bits, 256 q of 4 bits                     | d s q - e t, 32 a pair |
/// | Q5_K       | as Q4_K with 256 fifth bits                                                 | the same               |
/// | Q6_K       | 256 q of 4 bits and their upper 2, 16 int8 s, f16 d                         | d s (q - 32), 16 an s  |
///
/// Source: `ggml-org/llama.cpp:ggml/src/ggml-common.h`, `ggml-quants.c`.
const BlockFormat& block_format(ElementFormat format);

}  // namespace hedgehog
