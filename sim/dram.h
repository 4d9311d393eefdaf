// DRAM behind an AXI4 port, cycle by cycle, as sim/dram.py has it: read the reasons there.
// Both do the same in the same cycles.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <list>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace emte {

// ---- Rules of the ports ------------------------------------------------------------------------

struct BrokenRule : std::runtime_error {
    using std::runtime_error::runtime_error;
};

void expect(bool condition, const char* message) {
    if (!condition) throw BrokenRule(message);
}

// ---- Random pauses -----------------------------------------------------------------------------

enum Lane { LANE_REQUEST, LANE_VERDICT, LANE_RESOLVE, LANE_READ_ADDRESS, LANE_WRITE_ADDRESS,
            LANE_WRITE_DATA, LANE_READ_DATA, LANE_MEMORY };

class Chance {
  public:
    const bool active;

    explicit Chance(uint64_t seed) : active(seed != 0), state_(seed) {}

    void next_cycle(uint64_t cycle) {
        if (!active) return;
        if (cycle % 256 == 0) mood_ = next();
        draw_ = next();
    }

    bool pauses(Lane lane) const {
        static constexpr unsigned levels[] = {0, 32, 128, 240};
        return active && byte(lane) < levels[mood_ >> 8 * lane & 3];
    }

    unsigned byte(Lane lane) const { return draw_ >> 8 * lane & 0xFF; }

  private:
    uint64_t next() {
        uint64_t z = state_ += 0x9E3779B97F4A7C15;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
        z = (z ^ z >> 27) * 0x94D049BB133111EB;
        return z ^ z >> 31;
    }

    uint64_t state_, mood_ = 0, draw_ = 0;
};

// ---- DRAM ---------------------------------------------------------------------------------------

constexpr std::size_t OUTSTANDING_BURSTS = 8;
constexpr unsigned INTERLEAVED = 64;

struct Traffic {
    uint64_t read_bursts, read_beats, write_bursts, write_beats;
};

/// Between two edges of the clock, `drive` sets the inputs of the port and `observe` looks at its
/// outputs. Ports: what has the signals of the port as members, inputs with `next_` before the name.
template <class Ports>
class Dram {
  public:
    uint64_t storage_begin = 0, storage_end = 0;

    Dram(Ports& ports, const Chance& chance, Traffic& traffic, uint64_t latency)
        : ports_(ports), chance_(chance), traffic_(traffic), latency_(latency) {}

    void drive(uint64_t cycle) {
        ports_.next_memory__arready =
            reads_.size() < OUTSTANDING_BURSTS && !chance_.pauses(LANE_READ_ADDRESS);
        ports_.next_memory__awready =
            writes_.size() < OUTSTANDING_BURSTS && !chance_.pauses(LANE_WRITE_ADDRESS);
        ports_.next_memory__wready = !chance_.pauses(LANE_WRITE_DATA);

        if (!beat_offered_) {
            const unsigned draw = chance_.byte(LANE_MEMORY);
            if (reading_ == reads_.end() || (chance_.active && draw < INTERLEAVED))
                reading_ = choose(reads_, cycle, draw);
            beat_offered_ = reading_ != reads_.end() && !chance_.pauses(LANE_READ_DATA);
        }
        ports_.next_memory__rvalid = beat_offered_;
        if (beat_offered_) {
            ports_.next_memory__rid = reading_->id;
            ports_.next_memory__rdata = reading_->words[reading_->next];
            ports_.next_memory__rlast = reading_->next + 1 == reading_->words.size();
        }

        if (answering_ == responses_.end()) {
            answering_ = choose(responses_, cycle, chance_.byte(LANE_MEMORY) >> 4);
            if (answering_ != responses_.end()) {
                perform(*answering_);
                ports_.next_memory__bid = answering_->id;
            }
        }
        ports_.next_memory__bvalid = answering_ != responses_.end();
    }

    bool observe(uint64_t cycle) {
        bool progress = false;
        uint64_t due = cycle + latency_;
        if (chance_.active) due += chance_.byte(LANE_MEMORY) % 16;
        if (ports_.next_memory__rvalid && ports_.memory__rready) {
            progress = true;
            ++traffic_.read_beats;
            beat_offered_ = false;
            if (++reading_->next == reading_->words.size()) {
                reads_.erase(reading_);
                reading_ = reads_.end();
            }
        }
        if (ports_.next_memory__bvalid && ports_.memory__bready) {
            progress = true;
            responses_.erase(answering_);
            answering_ = responses_.end();
        }
        if (ports_.memory__arvalid && ports_.next_memory__arready) {
            progress = true;
            ++traffic_.read_bursts;
            const uint64_t first = burst("ar", ports_.memory__araddr, ports_.memory__arlen,
                                         ports_.memory__arsize, ports_.memory__arburst);
            ReadBurst read{ports_.memory__arid, due, 0, {}};
            for (unsigned n = 0; n <= ports_.memory__arlen; ++n) read.words.push_back(word(first + n));
            reads_.push_back(std::move(read));
        }
        if (ports_.memory__awvalid && ports_.next_memory__awready) {
            progress = true;
            ++traffic_.write_bursts;
            const uint64_t first = burst("aw", ports_.memory__awaddr, ports_.memory__awlen,
                                         ports_.memory__awsize, ports_.memory__awburst);
            writes_.push_back({ports_.memory__awid, first, ports_.memory__awlen + 1u, 0, {}});
        }
        if (ports_.memory__wvalid && ports_.next_memory__wready) {
            progress = true;
            ++traffic_.write_beats;
            beats_.push_back({ports_.memory__wdata, ports_.memory__wstrb, bool(ports_.memory__wlast)});
        }
        while (!writes_.empty() && !beats_.empty()) {
            WriteBurst& write = writes_.front();
            write.beats.push_back(beats_.front());
            beats_.pop_front();
            const bool complete = write.beats.size() == write.length;
            expect(write.beats.back().last == complete, "wlast does not mark the last beat");
            if (complete) {
                write.due = due;
                responses_.push_back(std::move(write));
                writes_.pop_front();
            }
        }
        return progress;
    }

  private:
    struct ReadBurst {
        uint64_t id;
        uint64_t due;
        std::size_t next;
        std::vector<uint64_t> words;
    };
    struct Beat {
        uint64_t data, strobes;
        bool last;
    };
    struct WriteBurst {
        uint64_t id;
        uint64_t first;
        std::size_t length;
        uint64_t due;
        std::vector<Beat> beats;
    };

    uint64_t word(uint64_t number) const {
        const auto found = words_.find(number);
        return found == words_.end() ? 0 : found->second;
    }

    /// Of the bursts that are due, one that is the oldest with its id; the end if there is none.
    template <class Burst>
    typename std::list<Burst>::iterator choose(std::list<Burst>& bursts, uint64_t cycle,
                                               unsigned draw) {
        if (bursts.empty()) return bursts.end();
        std::vector<typename std::list<Burst>::iterator> eligible;
        for (auto burst = bursts.begin(); burst != bursts.end(); ++burst) {
            const bool oldest = std::none_of(
                bursts.begin(), burst, [&](const Burst& other) { return other.id == burst->id; });
            if (oldest && burst->due <= cycle) eligible.push_back(burst);
        }
        if (eligible.empty()) return bursts.end();
        return eligible[chance_.active ? draw % eligible.size() : 0];
    }

    uint64_t burst(const std::string& channel, uint64_t address, unsigned length, unsigned size,
                   unsigned kind) const {
        const auto check = [&](bool condition, const std::string& message) {
            if (!condition) throw BrokenRule(message);
        };
        const uint64_t bytes = 8 * (length + 1u);
        check(size == 3, channel + "size is not that of the data bus");
        check(kind == 1, channel + "burst is not INCR");
        check(address % 8 == 0, channel + "addr is not aligned to a beat");
        check(address % 4096 + bytes <= 4096, "the " + channel + " burst crosses 4096 bytes");
        if (address < storage_begin || address + bytes > storage_end) {
            char text[32];
            snprintf(text, sizeof text, "%#llx", static_cast<unsigned long long>(address));
            throw BrokenRule("the " + channel + " burst at " + text + " leaves tag storage");
        }
        return address / 8;
    }

    void perform(const WriteBurst& write) {
        uint64_t number = write.first;
        for (const Beat& beat : write.beats) {
            uint64_t mask = 0;
            for (unsigned byte = 0; byte < 8; ++byte)
                if (beat.strobes >> byte & 1) mask |= uint64_t(0xFF) << 8 * byte;
            uint64_t& word = words_[number++];
            word = (word & ~mask) | (beat.data & mask);
        }
    }

    Ports& ports_;
    const Chance& chance_;
    Traffic& traffic_;
    const uint64_t latency_;
    std::unordered_map<uint64_t, uint64_t> words_;
    std::list<ReadBurst> reads_;
    typename std::list<ReadBurst>::iterator reading_ = reads_.end();
    bool beat_offered_ = false;
    std::deque<WriteBurst> writes_;
    std::deque<Beat> beats_;
    std::list<WriteBurst> responses_;
    typename std::list<WriteBurst>::iterator answering_ = responses_.end();
};

}  // namespace emte
