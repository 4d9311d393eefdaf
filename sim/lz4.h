// The two functions of LZ4 that Verilator's writer of FST files calls, for machines without LZ4.
// One pass with a small table: it finds the repetitions of a waveform's hierarchy, and no more.

#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

inline int LZ4_compressBound(int size) { return size + size / 255 + 16; }

/// Compress into one block; the target has room for `LZ4_compressBound(size)` bytes.
inline int LZ4_compress_default(const char* source, char* target, int size, int) {
    constexpr int SHORTEST = 4, FARTHEST = 65535;
    // What the format asks for: the last bytes are literals, and no match begins near the end.
    constexpr int LITERAL_END = 5, MATCH_END = 12;
    char* out = target;
    const auto lengthen = [&out](int rest) {  // what a token's four bits do not hold
        if ((rest -= 15) < 0) return;
        for (; rest >= 255; rest -= 255) *out++ = char(255);
        *out++ = char(rest);
    };
    const auto token = [&](int literals, int match) {
        *out++ = char((literals < 15 ? literals : 15) << 4 | (match < 15 ? match : 15));
        lengthen(literals);
    };
    const auto copy = [&](int from, int literals) {
        if (literals) std::memcpy(out, source + from, std::size_t(literals));
        out += literals;
    };
    const auto word = [source](int at) {
        uint32_t value;
        std::memcpy(&value, source + at, sizeof value);
        return value;
    };
    std::vector<int> places(1 << 12, -1);  // where four bytes were last, by their hash
    int copied = 0, at = 0;
    while (at < size - MATCH_END) {
        const int from = std::exchange(places[word(at) * 2654435761u >> 20], at);
        if (from < 0 || at - from > FARTHEST || word(from) != word(at)) {
            ++at;
            continue;
        }
        int end = at + SHORTEST;
        while (end < size - LITERAL_END && source[end] == source[from + end - at]) ++end;
        token(at - copied, end - at - SHORTEST);
        copy(copied, at - copied);
        *out++ = char(at - from);
        *out++ = char((at - from) >> 8);
        lengthen(end - at - SHORTEST);
        copied = at = end;
    }
    token(size - copied, 0);
    copy(copied, size - copied);
    return int(out - target);
}
