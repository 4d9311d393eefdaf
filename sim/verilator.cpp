// Drives the ports of the pipeline, cycle by cycle, as sim/pysim.py does: read the reasons there.
// Both do the same in the same cycles. Transactions come in and results go out as arrays.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "Pipeline.h"
#include "layout.h"  // where the fields of payloads lie, and what depends on the configuration
#include "verilated.h"
#if VM_TRACE
#include "verilated_vcd_c.h"
#endif

namespace emte {

// ---- What sim/transactions.py describes --------------------------------------------------------

struct Transaction {
    uint64_t va, tags, bytes;
    uint32_t row;
    uint8_t kind, op, flags, branches;
};

struct Result {
    uint64_t far, tags;
    uint32_t outcome, wnr;
};

struct Timing {
    uint64_t transferred, answered;
    uint32_t gap, data;
    uint64_t waits;
};

struct Counters {
    uint64_t row, operations, cycles, accesses, lookups;
    uint64_t read_bursts, read_beats, write_bursts, write_beats;
};

enum Kind : uint8_t { ACCESS, GENERATE, RESOLVE, REGIME, STORAGE, GCR, RGSR };
enum Flag : uint8_t { EL0 = 16, IF_PASSED = 32, DRAIN = 64, MISPREDICTED = 128 };
enum Outcome : uint32_t { PASS = 0, ASYNC = 1, SQUASHED = 8, NOT_SENT = 9 };

constexpr uint64_t PHYSICAL_BITS = (uint64_t(1) << 52) - 1;
constexpr std::size_t OUTSTANDING_BURSTS = 8;
constexpr uint64_t PATIENCE = 10000;

// ---- Rules of the ports ------------------------------------------------------------------------

struct BrokenRule : std::runtime_error {
    using std::runtime_error::runtime_error;
};

void expect(bool condition, const char* message) {
    if (!condition) throw BrokenRule(message);
}

// ---- Fields of payloads that are wider than 64 bits ---------------------------------------------

/// Set a field whose bits are 0.
template <std::size_t Words>
void insert(VlWide<Words>& payload, unsigned at, uint64_t value) {
    const unsigned word = at / 32, shift = at % 32;
    payload[word] |= uint32_t(value << shift);
    if (word + 1 < Words) payload[word + 1] |= uint32_t(value >> (32 - shift));
    if (word + 2 < Words && shift) payload[word + 2] |= uint32_t(value >> (64 - shift));
}

template <std::size_t Words>
uint64_t extract(const VlWide<Words>& payload, unsigned at, unsigned width) {
    const unsigned word = at / 32, shift = at % 32;
    uint64_t value = payload[word] >> shift;
    if (word + 1 < Words) value |= uint64_t(payload[word + 1]) << (32 - shift);
    if (word + 2 < Words && shift) value |= uint64_t(payload[word + 2]) << (64 - shift);
    return width < 64 ? value & ((uint64_t(1) << width) - 1) : value;
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

// ---- DRAM behind AXI4 --------------------------------------------------------------------------

class Memory {
  public:
    uint64_t storage_begin = 0, storage_end = 0;

    Memory(Pipeline& top, const Chance& chance, Counters& counters, uint64_t latency)
        : top_(top), chance_(chance), counters_(counters), latency_(latency) {}

    void drive(uint64_t cycle) {
        top_.next_memory__arready =
            reads_.size() < OUTSTANDING_BURSTS && !chance_.pauses(LANE_READ_ADDRESS);
        top_.next_memory__awready =
            writes_.size() < OUTSTANDING_BURSTS && !chance_.pauses(LANE_WRITE_ADDRESS);
        top_.next_memory__wready = !chance_.pauses(LANE_WRITE_DATA);

        if (!reading_) choose(cycle);
        if (reading_ && !beat_offered_) beat_offered_ = !chance_.pauses(LANE_READ_DATA);
        top_.next_memory__rvalid = beat_offered_;
        if (beat_offered_) {
            top_.next_memory__rid = read_.id;
            top_.next_memory__rdata = read_.words[read_.next];
            top_.next_memory__rlast = read_.next + 1 == read_.words.size();
        }

        if (!response_offered_ && !responses_.empty() && responses_.front().due <= cycle) {
            response_offered_ = true;
            perform(responses_.front());
            top_.next_memory__bid = responses_.front().id;
        }
        top_.next_memory__bvalid = response_offered_;
    }

    bool observe(uint64_t cycle) {
        bool progress = false;
        uint64_t due = cycle + latency_;
        if (chance_.active) due += chance_.byte(LANE_MEMORY) % 16;
        if (top_.next_memory__rvalid && top_.memory__rready) {
            progress = true;
            ++counters_.read_beats;
            beat_offered_ = false;
            reading_ = ++read_.next < read_.words.size();
        }
        if (top_.next_memory__bvalid && top_.memory__bready) {
            progress = true;
            response_offered_ = false;
            responses_.pop_front();
        }
        if (top_.memory__arvalid && top_.next_memory__arready) {
            progress = true;
            ++counters_.read_bursts;
            const uint64_t first = burst("ar", top_.memory__araddr, top_.memory__arlen,
                                         top_.memory__arsize, top_.memory__arburst);
            ReadBurst read{top_.memory__arid, due, 0, {}};
            for (unsigned n = 0; n <= top_.memory__arlen; ++n) read.words.push_back(word(first + n));
            reads_.push_back(std::move(read));
        }
        if (top_.memory__awvalid && top_.next_memory__awready) {
            progress = true;
            ++counters_.write_bursts;
            const uint64_t first = burst("aw", top_.memory__awaddr, top_.memory__awlen,
                                         top_.memory__awsize, top_.memory__awburst);
            writes_.push_back({top_.memory__awid, first, top_.memory__awlen + 1u, 0, {}});
        }
        if (top_.memory__wvalid && top_.next_memory__wready) {
            progress = true;
            ++counters_.write_beats;
            beats_.push_back({top_.memory__wdata, top_.memory__wstrb, bool(top_.memory__wlast)});
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
        uint32_t id;
        uint64_t due;
        std::size_t next;
        std::vector<uint64_t> words;
    };
    struct Beat {
        uint64_t data;
        unsigned strobes;
        bool last;
    };
    struct WriteBurst {
        uint32_t id;
        uint64_t first;
        std::size_t length;
        uint64_t due;
        std::vector<Beat> beats;
    };

    uint64_t word(uint64_t number) const {
        const auto found = words_.find(number);
        return found == words_.end() ? 0 : found->second;
    }

    void choose(uint64_t cycle) {
        std::vector<std::size_t> eligible;
        for (std::size_t n = 0; n < reads_.size(); ++n) {
            bool oldest = true;
            for (std::size_t before = 0; before < n; ++before)
                oldest = oldest && reads_[before].id != reads_[n].id;
            if (oldest && reads_[n].due <= cycle) eligible.push_back(n);
        }
        if (eligible.empty()) return;
        const auto choice =
            eligible[chance_.active ? chance_.byte(LANE_MEMORY) % eligible.size() : 0];
        read_ = std::move(reads_[choice]);
        reads_.erase(reads_.begin() + std::ptrdiff_t(choice));
        reading_ = true;
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

    Pipeline& top_;
    const Chance& chance_;
    Counters& counters_;
    const uint64_t latency_;
    std::unordered_map<uint64_t, uint64_t> words_;
    std::deque<ReadBurst> reads_;
    ReadBurst read_{};
    bool reading_ = false, beat_offered_ = false;
    std::deque<WriteBurst> writes_, responses_;
    std::deque<Beat> beats_;
    bool response_offered_ = false;
};

// ---- The core's side of the ports --------------------------------------------------------------

int assertion_line = 0;  // of the Verilog, where an assertion of the pipeline failed

class Harness {
  public:
    Counters counters{};
    std::string message;

    Harness(const Transaction* transactions, uint64_t count, Result* results, Timing* timing,
            uint64_t seed, uint64_t latency, const char* vcd)
        : transactions_(transactions), count_(count), results_(results), timing_(timing),
          chance_(seed),
          memory_(top_, chance_, counters, latency), patience_(PATIENCE + 10 * latency),
          owners_(std::size_t(1) << layout::ID_BITS) {
        for (std::size_t id = 0; id < owners_.size(); ++id) free_ids_.push_back(uint32_t(id));
        top_.next_control__storage_zeroed = 1;
        top_.next_generate__response__ready = 1;
        assertion_line = 0;
#if VM_TRACE
        context_.traceEverOn(true);
        top_.trace(&trace_, 99);
        trace_.open(vcd);
#else
        (void)vcd;
#endif
        top_.eval();
        drive();
        top_.inputs_clk = 1;
        step();
    }

    ~Harness() {
        top_.final();
#if VM_TRACE
        trace_.close();
#endif
    }

    /// 0: there is more to do; 1: all is done; 2: failed, see `message`.
    int run(uint64_t cycles) {
        try {
            while (cycles-- && !finished_) {
                observe();
                ++counters.cycles;
                finished_ = done();
                drive();
                next_cycle();
            }
        } catch (const BrokenRule& error) {
            message = error.what() + (" (cycle " + std::to_string(counters.cycles) + ")");
        }
        place();
        if (!message.empty()) return 2;
        return finished_ ? 1 : 0;
    }

  private:
    struct Owner {
        int64_t number = -1;  // of the transaction that has the id
        uint8_t branches = 0;
        bool sent = false;
    };

    bool done() const { return head_ == count_ && !outstanding_ && !offered_ && idle_; }

    void place() {
        uint64_t number = head_ < count_ ? head_ : count_ - 1;
        counters.operations = transactions_[number].row;
        for (const Owner& owner : owners_)
            if (owner.number >= 0 && uint64_t(owner.number) < number) number = uint64_t(owner.number);
        counters.row = transactions_[number].row;
    }

    /// The inputs that were driven become those of the pipeline, with all that follows.
    void next_cycle() {
        top_.clk = top_.inputs_clk = 0;
        step();
        top_.clk = top_.inputs_clk = 1;
        step();
        if (assertion_line) blame();
    }

    /// An assertion did not hold in the cycle that has just ended.
    [[noreturn]] void blame() {
        --counters.cycles;
        for (const auto& assertion : layout::ASSERTIONS)
            if (assertion.line == assertion_line) throw BrokenRule(assertion.message);
        throw BrokenRule("an assertion failed");
    }

    void step() {
        top_.eval();
#if VM_TRACE
        trace_.dump(context_.time());
#endif
        context_.timeInc(5);
    }

    // Inputs of the cycle that comes next

    void drive() {
        chance_.next_cycle(counters.cycles);
        resolving_ = false;
        top_.next_resolve__valid = 0;
        top_.next_generate__rgsr_write = 0;
        while (head_ < count_ && begin(transactions_[head_])) {
            ++head_;
            last_progress_ = counters.cycles;
        }
        top_.next_access__valid = offered_;
        top_.next_generate__request__valid = requesting_;
        top_.next_verdict__ready = !chance_.pauses(LANE_VERDICT);
        memory_.drive(counters.cycles);
    }

    bool begin(const Transaction& transaction) {
        if (generating_ || top_.next_generate__rgsr_write) return false;
        if ((transaction.flags & DRAIN) && !(idle_ && !outstanding_ && !offered_)) return false;
        switch (transaction.kind) {
            case ACCESS:
                return offer(transaction);
            case GENERATE:
                if (!chance_.pauses(LANE_REQUEST)) {
                    generating_ = requesting_ = true;
                    top_.next_generate__request__payload = transaction.tags;
                }
                return false;
            case RESOLVE:
                if (resolving_ || chance_.pauses(LANE_RESOLVE)) return false;
                resolving_ = true;
                top_.next_resolve__valid = 1;
                top_.next_resolve__branch = transaction.op;
                top_.next_resolve__mispredicted = bool(transaction.flags & MISPREDICTED);
                return true;
            case GCR:
                top_.next_generate__gcr = uint32_t(transaction.tags);
                return true;
            case RGSR:
                top_.next_generate__rgsr_write = 1;
                top_.next_generate__rgsr_value = transaction.tags;
                return true;
            case REGIME:
                if (offered_) return false;
                top_.next_control__tbi = transaction.tags & 3;
                top_.next_control__mtx = transaction.tags >> 2 & 3;
                top_.next_control__tcma = transaction.tags >> 4 & 3;
                top_.next_control__ata = transaction.tags >> 6 & 3;
                top_.next_control__tcso = transaction.tags >> 8 & 3;
                top_.next_control__tcf = transaction.tags >> 10 & 15;
                return true;
            default:  // STORAGE
                if (offered_) return false;
                top_.next_control__memory_base = transaction.va;
                top_.next_control__memory_bytes = transaction.bytes;
                top_.next_control__storage_base = transaction.tags;
                memory_.storage_begin = transaction.tags;
                memory_.storage_end = transaction.tags + transaction.bytes / 32;
                return true;
        }
    }

    bool offer(const Transaction& transaction) {
        if (offered_ || is_working()) return false;
        if (transaction.flags & IF_PASSED) {
            for (const Owner& owner : owners_)
                if (owner.number == int64_t(head_) - 1) return false;
            if (results_[head_ - 1].outcome != PASS) {
                results_[head_].outcome = NOT_SENT;
                return true;
            }
        }
        if (resolving_ && (transaction.branches >> top_.next_resolve__branch & 1)) return false;
        if (chance_.pauses(LANE_REQUEST) || free_ids_.empty()) return false;
        const uint32_t id = free_ids_.back();
        free_ids_.pop_back();
        owners_[id] = {int64_t(head_), transaction.branches, false};
        offered_ = true;
        offered_id_ = id;
        ++outstanding_;
        auto& payload = top_.next_access__payload;
        for (std::size_t n = 0; n < sizeof payload / sizeof payload[0]; ++n) payload[n] = 0;
        insert(payload, layout::ACCESS_ID, id);
        insert(payload, layout::ACCESS_OP, transaction.op);
        insert(payload, layout::ACCESS_VA, transaction.va);
        insert(payload, layout::ACCESS_PA, transaction.va & PHYSICAL_BITS);
        insert(payload, layout::ACCESS_BYTES, transaction.bytes);
        insert(payload, layout::ACCESS_MEMORY, transaction.flags & 0x1F);
        insert(payload, layout::ACCESS_BRANCHES, transaction.branches);
        insert(payload, layout::ACCESS_TAGS, transaction.tags);
        return true;
    }

    /// Is the core not ready for the next access, though the pipeline may be?
    bool is_working() {
        if (!timing_) return false;
        if (awaited_ < 0 && counters.cycles >= free_ + timing_[head_].gap) return false;
        if (awaited_ < 0) last_progress_ = counters.cycles;
        return true;
    }

    // Outputs of a cycle, while its inputs are still where they were driven

    void observe() {
        bool progress = memory_.observe(counters.cycles);
        const bool taken = offered_ && top_.access__ready;
        if (taken) {
            progress = true;
            ++counters.accesses;
            offered_ = false;
            owners_[offered_id_].sent = true;  // of no account if it has been squashed meanwhile
            if (timing_) note_transfer(owners_[offered_id_].number);
        }
        progress |= observe_generator();
        progress |= observe_verdict();
        if (resolving_ && layout::HOLDS_BRANCHES) apply_resolve();
        idle_ = top_.idle && !taken;
        counters.lookups += top_.lookup;
        if (progress) last_progress_ = counters.cycles;
        expect(counters.cycles - last_progress_ < patience_, "the pipeline hangs");
        if (done()) expect(top_.tfsr == tfsr_, "TFSR is not what the ASYNC verdicts make it");
    }

    void note_transfer(int64_t number) {
        free_ = counters.cycles;
        if (number < 0) return;
        Timing& timing = timing_[number];
        timing.transferred = counters.cycles;
        free_ += timing.data;
        if (timing.waits) awaited_ = number;
    }

    bool observe_generator() {
        const bool accepted = requesting_ && top_.generate__request__ready;
        if (accepted) requesting_ = false;
        if (generated_) {
            results_[head_].far = top_.generate__rgsr;
            generated_ = generating_ = false;
            ++head_;
        }
        if (top_.generate__response__valid) {
            expect(generating_, "a tag is given that nobody asked for");
            results_[head_].tags = top_.generate__response__payload;
            generated_ = true;
        }
        return accepted || top_.generate__response__valid;
    }

    bool observe_verdict() {
        const auto& payload = top_.verdict__payload;
        if (!top_.verdict__valid) {
            expect(!verdict_waits_, "a verdict is withdrawn");
            for (std::size_t n = 0; n < sizeof payload / sizeof payload[0]; ++n)
                expect(!payload[n], "the payload of verdict is not 0 while it is not valid");
            return false;
        }
        // Not "==", which would compare the places of two VlWide.
        expect(!verdict_waits_ || !std::memcmp(&payload, &waiting_verdict_, sizeof payload),
               "a verdict changes before it is taken");
        verdict_waits_ = !top_.next_verdict__ready;
        waiting_verdict_ = payload;
        if (verdict_waits_) return false;
        const auto id = uint32_t(extract(payload, layout::VERDICT_ID, layout::ID_BITS));
        Owner& owner = owners_[id];
        if (owner.number < 0)
            throw BrokenRule("a verdict for id " + std::to_string(id) + ", which no access has");
        expect(owner.sent, "a verdict before its access was taken");
        expect(!layout::HOLDS_BRANCHES || !owner.branches,
               "a verdict before its branches are resolved");
        if (timing_) {
            timing_[owner.number].answered = counters.cycles;
            if (awaited_ == owner.number) free_ = std::max(free_, counters.cycles);
        }
        Result& result = results_[owner.number];
        result.far = extract(payload, layout::VERDICT_FAR, 64);
        result.tags = extract(payload, layout::VERDICT_TAGS, 64);
        result.outcome = uint32_t(extract(payload, layout::VERDICT_OUTCOME, 3));
        result.wnr = uint32_t(extract(payload, layout::VERDICT_WNR, 1));
        if (result.outcome == ASYNC) {
            const Transaction& transaction = transactions_[owner.number];
            const unsigned half = transaction.va >> 55 & 1;
            tfsr_ |= 1u << (transaction.flags & EL0 ? half : 2 + half);
        }
        release(id);
        return true;
    }

    void apply_resolve() {
        const unsigned bit = 1u << top_.next_resolve__branch;
        for (uint32_t id = 0; id < owners_.size(); ++id) {
            Owner& owner = owners_[id];
            if (owner.number < 0 || !(owner.branches & bit)) continue;
            owner.branches &= uint8_t(~bit);
            if (top_.next_resolve__mispredicted) {
                results_[owner.number] = {0, 0, SQUASHED, 0};
                release(id);
            }
        }
    }

    void release(uint32_t id) {
        if (awaited_ == owners_[id].number) awaited_ = -1;
        owners_[id].number = -1;
        free_ids_.push_back(id);
        --outstanding_;
    }

    const Transaction* const transactions_;
    const uint64_t count_;
    Result* const results_;
    Timing* const timing_;  // null: the core offers whenever it can, and nobody asks for times
    VerilatedContext context_;
    Pipeline top_{&context_, "tag_pipeline"};
#if VM_TRACE
    VerilatedVcdC trace_;
#endif
    Chance chance_;
    Memory memory_;
    const uint64_t patience_;
    uint64_t head_ = 0, last_progress_ = 0;
    std::vector<uint32_t> free_ids_;
    std::vector<Owner> owners_;
    uint64_t outstanding_ = 0;
    bool offered_ = false;
    uint32_t offered_id_ = 0;
    bool requesting_ = false, generating_ = false, generated_ = false;
    bool resolving_ = false, idle_ = true;
    bool finished_ = false;
    bool verdict_waits_ = false;
    std::remove_reference_t<decltype(Pipeline::verdict__payload)> waiting_verdict_{};
    uint32_t tfsr_ = 0;
    uint64_t free_ = 0;     // from this cycle on the core works on what comes after the last access
    int64_t awaited_ = -1;  // the access without whose verdict it does not go on
};

}  // namespace emte

// An assertion failed. Verilator calls this instead of its own, which would end the process.
void vl_stop(const char*, int line, const char*) {
    emte::assertion_line = line;
}

// ---- What sim/verilated.py calls ---------------------------------------------------------------

#pragma GCC visibility push(default)
extern "C" {

using namespace emte;

Harness* emte_create(const Transaction* transactions, uint64_t count, Result* results,
                     Timing* timing, uint64_t seed, uint64_t latency, const char* vcd) {
    return new Harness(transactions, count, results, timing, seed, latency, vcd);
}

int emte_run(Harness* harness, uint64_t cycles) { return harness->run(cycles); }

const Counters* emte_counters(const Harness* harness) { return &harness->counters; }

const char* emte_message(const Harness* harness) { return harness->message.c_str(); }

void emte_destroy(Harness* harness) { delete harness; }
}
#pragma GCC visibility pop
