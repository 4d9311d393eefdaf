// Drives the ports of the pipeline, cycle by cycle, as sim/pysim.py does: read the reasons there.
// Both do the same in the same cycles. Transactions come in and results go out as arrays.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "Pipeline.h"
#include "layout.h"  // where the fields of payloads lie, and what depends on the configuration
#include "dram.h"  // after layout.h, which has other names for ports
#include "verilated.h"
#if VM_TRACE_VCD
#include "verilated_vcd_c.h"
using Waves = VerilatedVcdC;
#elif VM_TRACE_FST
#include "verilated_fst_c.h"
using Waves = VerilatedFstC;
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
    Traffic traffic;
};

enum Kind : uint8_t { ACCESS, GENERATE, RESOLVE, REGIME, STORAGE, GCR, RGSR };
enum Flag : uint8_t { EL0 = 16, IF_PASSED = 32, DRAIN = 64, MISPREDICTED = 128 };
enum Outcome : uint32_t { PASS = 0, ASYNC = 1, SQUASHED = 8, NOT_SENT = 9 };

constexpr uint64_t PHYSICAL_BITS = (uint64_t(1) << 52) - 1;
constexpr uint64_t PATIENCE = 10000;
constexpr uint64_t CYCLE_TIME = 10;  // in waveforms; even

// ---- Fields of payloads that are wider than 64 bits ---------------------------------------------

/// Set a field whose bits are 0.
template <unsigned At, std::size_t Words>
void insert(VlWide<Words>& payload, uint64_t value) {
    constexpr unsigned word = At / 32, shift = At % 32;
    payload[word] |= uint32_t(value << shift);
    if constexpr (word + 1 < Words) payload[word + 1] |= uint32_t(value >> (32 - shift));
    if constexpr (word + 2 < Words && shift) payload[word + 2] |= uint32_t(value >> (64 - shift));
}

template <unsigned At, unsigned Width, std::size_t Words>
uint64_t extract(const VlWide<Words>& payload) {
    constexpr unsigned word = At / 32, shift = At % 32;
    uint64_t value = payload[word] >> shift;
    if constexpr (shift + Width > 32) value |= uint64_t(payload[word + 1]) << (32 - shift);
    if constexpr (shift + Width > 64) value |= uint64_t(payload[word + 2]) << (64 - shift);
    return value & (~uint64_t(0) >> (64 - Width));
}

// ---- The core's side of the ports --------------------------------------------------------------

int assertion_line = 0;  // of the Verilog, where an assertion of the pipeline failed

class Harness {
  public:
    Counters counters{};
    std::string message;

    Harness(const Transaction* transactions, uint64_t count, Result* results, Timing* timing,
            uint64_t seed, uint64_t latency, const char* waves, uint64_t first, uint64_t last)
        : transactions_(transactions), count_(count), results_(results), timing_(timing),
          chance_(seed),
          memory_(top_, chance_, counters.traffic, latency), patience_(PATIENCE + 10 * latency),
          owners_(std::size_t(1) << layout::ID_BITS) {
        for (std::size_t id = 0; id < owners_.size(); ++id) free_ids_.push_back(uint32_t(id));
        top_.next_control__storage_zeroed = 1;
        top_.next_generate__response__ready = 1;
        assertion_line = 0;
#if VM_TRACE
        context_.traceEverOn(true);
        top_.trace(&waves_, 99);
        waves_.open(waves);
        waves_begin_ = CYCLE_TIME * first;
        waves_end_ = CYCLE_TIME * (last + 1);
#else
        (void)waves, (void)first, (void)last;
#endif
        top_.eval();
        drive();
        top_.inputs_clk = 1;
        step();
    }

    ~Harness() {
        top_.final();
#if VM_TRACE
        waves_.close();
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
#if VM_TRACE
        top_.clk = top_.inputs_clk = 0;
        step();
        top_.clk = top_.inputs_clk = 1;
#else
        top_.clk ^= 1;  // either edge counts: see sim/verilated.py
        top_.inputs_clk ^= 1;
#endif
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
        const uint64_t time = context_.time();
        if (waves_begin_ <= time && time < waves_end_) waves_.dump(time);
#endif
        context_.timeInc(CYCLE_TIME / 2);
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
        insert<layout::ACCESS_ID>(payload, id);
        insert<layout::ACCESS_OP>(payload, transaction.op);
        insert<layout::ACCESS_VA>(payload, transaction.va);
        insert<layout::ACCESS_PA>(payload, transaction.va & PHYSICAL_BITS);
        insert<layout::ACCESS_BYTES>(payload, transaction.bytes);
        insert<layout::ACCESS_MEMORY>(payload, transaction.flags & 0x1F);
        insert<layout::ACCESS_BRANCHES>(payload, transaction.branches);
        insert<layout::ACCESS_TAGS>(payload, transaction.tags);
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
        const auto id = uint32_t(extract<layout::VERDICT_ID, layout::ID_BITS>(payload));
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
        result.far = extract<layout::VERDICT_FAR, 64>(payload);
        result.tags = extract<layout::VERDICT_TAGS, 64>(payload);
        result.outcome = uint32_t(extract<layout::VERDICT_OUTCOME, 3>(payload));
        result.wnr = uint32_t(extract<layout::VERDICT_WNR, 1>(payload));
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
    Waves waves_;
    uint64_t waves_begin_ = 0, waves_end_ = 0;
#endif
    Chance chance_;
    Dram<Pipeline> memory_;
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
                     Timing* timing, uint64_t seed, uint64_t latency, const char* waves,
                     uint64_t first, uint64_t last) {
    return new Harness(transactions, count, results, timing, seed, latency, waves, first, last);
}

int emte_run(Harness* harness, uint64_t cycles) { return harness->run(cycles); }

const Counters* emte_counters(const Harness* harness) { return &harness->counters; }

const char* emte_message(const Harness* harness) { return harness->message.c_str(); }

void emte_destroy(Harness* harness) { delete harness; }
}
#pragma GCC visibility pop
